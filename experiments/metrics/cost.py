"""One worker of `metrics`: train with the callback and without it, in turns of some tens of steps, in one job."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from ...adapters import Batch, Training, create_strategy
from ...plugins.metrics import WorkerMetrics
from ..progress import tell
from .models import Prepared, prepare_on

TURN = 60
"""Steps of a turn: several windows, since a window closes every 10 steps, or every half second."""

_BATCHES = 8  # trained on again and again
_WARM_UP = 2  # pairs of turns


def measure(name: str, model: str, pairs: int, folder: str) -> dict[str, list[float]]:
    """Return the seconds per step of each turn on this worker: `{"with": [...], "without": [...]}`."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    draw = random.Random(0)  # the same order on all workers, in which drift of the machine cancels out
    with create_strategy(name) as strategy, strategy.scope():
        metrics = WorkerMetrics(Path(folder) / f"metrics-{name}")
        prepared = {
            "with": prepare_on(strategy, model, _BATCHES, [metrics]),
            "without": prepare_on(strategy, model, _BATCHES),
        }
        steps = (_WARM_UP + pairs) * TURN
        batches = {side: _batches(each, steps) for side, each in prepared.items()}
        for pair in range(_WARM_UP + pairs):
            for side in draw.sample(sorted(prepared), k=2):
                seconds[side].append(_turn(prepared[side].training, batches[side]))
            tell(f"pair {pair} of {_WARM_UP + pairs}")
    return {side: taken[_WARM_UP:] for side, taken in seconds.items()}


def _batches(prepared: Prepared, steps: int) -> Iterator[Batch]:
    epochs = -(-steps // _BATCHES)
    return prepared.training.batches(prepared.data, prepared.global_batch_size, epochs=epochs, shuffle=False)


def _turn(training: Training, batches: Iterator[Batch]) -> float:
    started = time.perf_counter()
    for _ in range(TURN):
        training.step(next(batches))
    return (time.perf_counter() - started) / TURN
