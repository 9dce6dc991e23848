"""A model's weights and its optimizer's state in plain PyTorch's form, whole, even if an engine shards them.

For frameworks with their own checkpoint format. All workers call these functions. The sharded checkpoints of
`Training.save` gather no whole state, and are for models that do not fit into one machine's memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import CheckpointError
from .engine import Engine, Shard, Slots
from .strategy import TorchStrategy


def whole_weights(strategy: TorchStrategy, engine: Engine, module: torch.nn.Module) -> dict[str, Any]:
    """Return `module.state_dict()` with whole parameters, in full precision, on the CPU of rank 0; elsewhere empty."""
    found: dict[str, Any] = {}
    for name, value in module.state_dict(keep_vars=True).items():
        if isinstance(value, torch.nn.Parameter):
            shard = engine.shard(value)
            value = _whole(strategy, shard, shard.weight, engine.shape(value))
        if strategy.worker.is_main:
            found[name] = value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value
    return found


def whole_optimizer_state(strategy: TorchStrategy, engine: Engine) -> dict[str, Any]:
    """Return `torch.optim.Optimizer.state_dict` as in one process, on the CPU of rank 0; elsewhere empty."""
    shards = [(parameter, engine.shard(parameter)) for parameter in engine.parameters]
    # A worker without elements of a parameter does not know the optimizer's slots for it.
    described: list[list[dict[str, Any]]] = strategy.gather([_describe(shard) for _, shard in shards])
    state: dict[int, Slots] = {}
    for number, (parameter, shard) in enumerate(shards):
        slots: Slots = {}
        for slot, value in next((worker[number] for worker in described if worker[number]), {}).items():
            if isinstance(value, torch.dtype):
                own = shard.slots.get(slot, torch.empty(0, dtype=value, device=shard.weight.device))
                value = _whole(strategy, shard, own, engine.shape(parameter)).to("cpu", copy=True)
            slots[slot] = value
        if slots:
            state[number] = slots
    numbers = iter(range(len(shards)))
    groups = [
        {**_hyperparameters(group), "params": [next(numbers) for _ in parameters]}
        for group, parameters in zip(engine.optimizer.param_groups, engine.groups, strict=True)
    ]
    return {"state": state, "param_groups": groups} if strategy.worker.is_main else {}


def load_whole_weights(engine: Engine, module: torch.nn.Module, state: Mapping[str, Any], strict: bool) -> None:
    """Load whole weights, as `Module.load_state_dict` does.

    Raises:
        CheckpointError: a shape differs, or with `strict` the names do.
    """
    own = module.state_dict(keep_vars=True)
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if strict and (missing or foreign):
        lines = [f"{kind}: {', '.join(names)}" for kind, names in (("missing", missing), ("unknown", foreign)) if names]
        raise CheckpointError(f"the checkpoint's weights are not this model's. {'; '.join(lines)}")
    parameters = {name: value for name, value in own.items() if isinstance(value, torch.nn.Parameter)}
    for name, parameter in parameters.items():
        if name in state:
            shape = engine.shape(parameter)
            if state[name].shape != shape:
                raise CheckpointError(
                    f"{name} has shape {tuple(state[name].shape)} in the checkpoint, {tuple(shape)} in the model"
                )
            shard = engine.shard(parameter)
            engine.load_weight(parameter, _cut(state[name], shard))
    module.load_state_dict(
        {name: state[name] for name in own if name in state and name not in parameters}, strict=False
    )
    engine.finish_loading()


def load_whole_optimizer_state(engine: Engine, state: Mapping[str, Any]) -> None:
    """Load a state of `torch.optim.Optimizer.state_dict` from one process.

    Raises:
        CheckpointError: its groups differ from this optimizer's.
    """
    groups = state["param_groups"]
    counts, own = [len(group["params"]) for group in groups], [len(group) for group in engine.groups]
    if counts != own:
        raise CheckpointError(
            f"the checkpoint's optimizer has groups of {counts} parameters, this one has groups of {own}"
        )
    slots: dict[torch.nn.Parameter, Slots] = {}
    for group, parameters in zip(groups, engine.groups, strict=True):
        for number, parameter in zip(group["params"], parameters, strict=True):
            shape, shard = engine.shape(parameter), engine.shard(parameter)
            slots[parameter] = {
                slot: _cut(value, shard) if _is_like_weight(slot, value, shape) else value
                for slot, value in state["state"].get(number, {}).items()
            }
    engine.load_optimizer([_hyperparameters(group) for group in groups], slots)


def _hyperparameters(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _describe(shard: Shard) -> dict[str, Any]:
    """Describe the optimizer's slots of a parameter here: the type of sharded ones, the value of others."""
    return {
        slot: value.dtype if _is_like_weight(slot, value, shard.weight.shape) else _on_cpu(value)
        for slot, value in shard.slots.items()
        if shard.weight.numel() > 0
    }


def _is_like_weight(slot: str, value: Any, shape: torch.Size) -> bool:
    """Whether a slot has a value for each element; a count of steps has not, even with the parameter's shape."""
    return isinstance(value, torch.Tensor) and value.shape == shape and not (slot == "step" and value.numel() == 1)


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, torch.Tensor) else value


def _whole(strategy: TorchStrategy, shard: Shard, values: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Join a tensor from all workers' shards."""
    if shard.replicated:
        return values.detach().view(shape)
    whole = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    whole[shard.start : shard.start + values.numel()] = values.detach()
    return strategy.start_all_reduce(whole.to(strategy.device), "sum", "whole")().view(shape)


def _cut(value: torch.Tensor, shard: Shard) -> torch.Tensor:
    return (
        value.detach().reshape(-1)[shard.start : shard.start + shard.weight.numel()].to(shard.weight.device, copy=True)
    )
