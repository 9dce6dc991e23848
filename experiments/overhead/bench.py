"""One worker of `overhead` on a PyTorch engine: our step and the raw one, interleaved in one job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...adapters import Batch, Training, create_strategy
from .models import build_data, build_model, loss_fn
from .pairs import BATCHES, time_pairs
from .raw import RAW, check_same
from .shapes import LEARNING_RATE, MOMENTUM, SHAPES


def bench(strategy_name: str, model_name: str, pairs: int, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds that each pair's two steps took on this worker: `{"ours": [...], "raw": [...]}`.

    Raises:
        RuntimeError: the two sides did not train the same model, so their times cannot be compared.
    """
    shape = SHAPES[model_name]
    with create_strategy(strategy_name, **options) as strategy, strategy.scope():
        our_model, raw_model = build_model(shape), build_model(shape)
        optimizer = torch.optim.SGD(our_model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        training: Training = strategy.prepare(our_model, optimizer, loss_fn)
        data = build_data(shape, BATCHES, strategy.worker.world_size)
        batches = list(training.batches(data, shape.batch * strategy.worker.world_size))
        raw_step = RAW[strategy_name](raw_model, options)

        def ours(batch: Batch) -> None:
            training.step(batch)

        def raw(batch: Batch) -> None:
            raw_step(*batch.micro[0])

        seconds = time_pairs({"ours": ours, "raw": raw}, batches, pairs)
        check_same(training.weights(), raw_model)
    return seconds
