"""One worker of `overhead` on a PyTorch engine: our step and the raw one, interleaved in one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import mse_loss

from ...adapters import Batch, Training, create_strategy
from .models import Data, build_data, build_model
from .pairs import BATCHES, time_pairs
from .raw import RAW, whole
from .shapes import LEARNING_RATE, MOMENTUM, SHAPES


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
        data = build_data(shape, BATCHES, strategy.worker.world_size)
        batches = list(training.batches(data, shape.batch * strategy.worker.world_size))
        raw_step = RAW[strategy_name](raw_model, options)

        def ours(batch: Batch) -> None:
            training.step(batch)

        def raw(batch: Batch) -> None:
            raw_step(*batch.micro[0])

        seconds = time_pairs({"ours": ours, "raw": raw}, batches, pairs)
        _check_same(training, raw_model)
    return seconds


def _loss(model: nn.Module, batch: Data) -> torch.Tensor:
    inputs, targets = batch
    return mse_loss(model(inputs), targets)


def _check_same(training: Training, raw_model: nn.Module) -> None:
    for (name, ours), parameter in zip(training.weights(), raw_model.parameters(), strict=True):
        raw = whole(parameter).cpu()
        difference = float((ours - raw).norm() / raw.norm())
        if not difference < 1e-4:
            raise RuntimeError(f"the two sides trained apart: {name!r} differs by {difference:.1e} of its norm")
