"""One worker of `overhead`: our step and the raw one, interleaved in one job.

Both sides have their own copy of the model and see the same batches. The order within a pair is drawn, alike on all
workers, so that drift of the machine and whatever one side leaves to the other (caches, a worker that lags) cancel out.
Python's garbage collector stays on: objects that a step leaves behind are part of its cost.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

from ...adapters import Batch, Training, create_strategy
from ..progress import tell
from .models import LEARNING_RATE, MOMENTUM, SHAPES, Data, build_data, build_model
from .raw import RAW, whole

_BATCHES = 8
_WARM_UP = 20  # pairs: DDP rebuilds its buckets after the first step, Horovod fills its cache of responses


def bench(strategy_name: str, model_name: str, pairs: int, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds that each pair's two steps took on this worker: `{"ours": [...], "raw": [...]}`.

    Raises:
        RuntimeError: the two sides did not train the same model, so their times say nothing of each other.
    """
    shape = SHAPES[model_name]
    with create_strategy(strategy_name, **options) as strategy, strategy.scope():
        our_model, raw_model = build_model(shape), build_model(shape)
        optimizer = torch.optim.SGD(our_model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        training: Training = strategy.prepare(our_model, optimizer, _loss)
        data = build_data(shape, _BATCHES, strategy.worker.world_size)
        batches = list(training.batches(data, shape.batch * strategy.worker.world_size))
        raw_step = RAW[strategy_name](raw_model, options)

        def ours(batch: Batch) -> None:
            training.step(batch)

        def raw(batch: Batch) -> None:
            raw_step(*batch.micro[0])

        seconds = _time_pairs({"ours": ours, "raw": raw}, batches, pairs)
        _check_same(training, raw_model)
    return seconds


def _time_pairs(
    sides: Mapping[str, Callable[[Batch], None]], batches: list[Batch], pairs: int
) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    draw = random.Random(0)
    for pair in range(_WARM_UP + pairs):
        batch = batches[pair % len(batches)]
        for name in draw.sample(sorted(sides), k=len(sides)):
            step = sides[name]
            started = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - started)
        if pair % 50 == 0:
            tell(f"pair {pair} of {_WARM_UP + pairs}")
    return {name: taken[_WARM_UP:] for name, taken in seconds.items()}


def _loss(model: nn.Module, batch: Data) -> torch.Tensor:
    inputs, targets = batch
    return mse_loss(model(inputs), targets)


def _check_same(training: Training, raw_model: nn.Module) -> None:
    for (name, ours), parameter in zip(training.weights(), raw_model.parameters(), strict=True):
        raw = whole(parameter).cpu()
        difference = float((ours - raw).norm() / raw.norm())
        if not difference < 1e-4:
            raise RuntimeError(f"the two sides trained apart: {name!r} differs by {difference:.1e} of its norm")
