"""The bytes of a training's state on one worker, counted in tensors."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ...adapters import create_strategy
from ...adapters.torch.strategy import TorchStrategy

_LAYERS, _WIDTH = 10, 1024  # 10.5 million parameters
_STEPS = 2  # the first creates the optimizer's state

# Make the engine's communication buffers too small to matter.
_SMALL_BUCKETS: Mapping[str, Mapping[str, Any]] = {
    "ddp": {"bucket_cap_mb": 1},
    "deepspeed": {"config": {"zero_optimization": {"reduce_bucket_size": 100_000, "allgather_bucket_size": 100_000}}},
}


def state_bytes(strategy_name: str) -> float:
    """Return the bytes per parameter that this worker holds for parameters, gradients and Adam, in float32.

    It counts the memory of all tensors that are alive between backward and the update, minus that before the model was
    built.
    """
    family = strategy_name.split("_")[0]
    with create_strategy(strategy_name, **_SMALL_BUCKETS.get(family, {})) as strategy:
        before, joined = _living_bytes(), cast(TorchStrategy, strategy)
        with strategy.scope():
            torch.manual_seed(0)
            model = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(_LAYERS)))
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
            training: Any = strategy.prepare(model, optimizer, _loss)
        inputs = torch.ones(1, _WIDTH, device=strategy.device)
        for step in range(_STEPS):
            training.engine.zero_grad()
            training.engine.backward(training.engine.forward(inputs))
            if step == _STEPS - 1:
                held = _living_bytes() - before
            training.engine.reduce_gradients()
            with joined.own_steps.updating():  # the engine's own step, and not one that a user writes by hand
                training.engine.update()
    return held / (_LAYERS * _WIDTH * (_WIDTH + 1))


def _loss(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(inputs)
    return output.square().mean()


@torch.no_grad()
def _living_bytes() -> int:
    gc.collect()
    storages: dict[int, int] = {}
    for found in gc.get_objects():
        if issubclass(type(found), torch.Tensor):
            # A gradient becomes a Python object only when Python code reads it.
            for tensor in (found, found.grad if found.is_leaf else None):
                if tensor is not None:
                    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor's local shard
                    storage = local.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
