"""One worker of `metrics`: slow one worker after another in one phase of its steps, and see who is named."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

from ...adapters import Batch, Strategy, Training, create_strategy
from ...plugins.metrics import Record, Sink, Window, WorkerMetrics, Workers
from ..progress import tell
from .brake import Brake
from .experiment import SLOWED
from .models import prepare_on

SHARE = 0.2
"""Of a step: how long the slow worker sleeps in each."""

WITHIN = 20
"""Steps in which a straggler must be named."""

_EVERY = 10  # steps of a window
_QUIET = 30  # steps between two trials
_WARM_UP = 40
_BATCHES = 8


class _Kept(Sink):
    """Keeps the records of windows."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def write(self, record: Record) -> None:
        self.records.append(record)


def measure(name: str, model: str, trials: int, folder: str) -> dict[str, Any]:
    """Return what rank 0 found; nothing on the other workers.

    `{"step_ms", "trials": [{"slowed", "rank", "named", "cause", "after"}, ...], "false_alarms", "windows",
    "other_share"}`: the median step without a slow worker; the first worker that was named in each trial, its cause,
    and after how many steps, or `None`; windows without a slow worker, and those in which one was named; and the share
    of "other" in the steps of those windows on the worker with the most.
    """
    kept, brake, draw = _Kept(), Brake(), random.Random(0)
    with create_strategy(name) as strategy, strategy.scope():
        metrics = WorkerMetrics(Path(folder) / f"slowed-{name}", every=_EVERY, sinks=[kept])
        prepared = prepare_on(strategy, model, _BATCHES, [metrics], brake)
        batches = prepared.training.batches(
            prepared.data, prepared.global_batch_size, epochs=10**6, shuffle=False, weight=brake.weight
        )
        step = _typical(strategy, prepared.training, batches)
        done, begun = _WARM_UP, []
        order = draw.sample([*SLOWED] * trials, k=len(SLOWED) * trials)
        for number, slowed in enumerate(order):
            tell(f"trial {number} of {len(order)}")
            rank = number % strategy.worker.world_size
            quiet = _QUIET + draw.randrange(_EVERY)  # trials begin anywhere in a window
            _train(prepared.training, batches, quiet)
            begun.append((done + quiet, slowed, rank))
            brake.phase, brake.seconds = (slowed if rank == strategy.worker.rank else None), SHARE * step
            _train(prepared.training, batches, WITHIN)
            brake.phase = None
            done += quiet + WITHIN
        _train(prepared.training, batches, _EVERY)
        is_main = strategy.worker.is_main
    if not is_main:
        return {}
    workers = [record for record in kept.records if isinstance(record, Workers)]
    calm = [record for record in workers if record.step > _WARM_UP and not _touches(record, begun)]
    own = [record for record in kept.records if isinstance(record, Window)]
    return {
        "step_ms": 1000 * step,
        "trials": [_trial(workers, *each) for each in begun],
        "false_alarms": sum(record.straggler is not None for record in calm),
        "windows": len(calm),
        "other_share": fmean(_other(record) for record in own if record.step > _WARM_UP),
    }


def _typical(strategy: Strategy, training: Training, batches: Iterator[Batch]) -> float:
    """Train for the warm-up, and return the median time of its later steps on the slowest worker."""
    _train(training, batches, _WARM_UP // 2)
    times = []
    for _ in range(_WARM_UP - _WARM_UP // 2):
        started = time.perf_counter()
        _train(training, batches, 1)
        times.append(time.perf_counter() - started)
    return float(max(strategy.gather(median(times))))


def _train(training: Training, batches: Iterator[Batch], steps: int) -> None:
    for batch in itertools.islice(batches, steps):
        training.step(batch)


def _touches(record: Workers, begun: list[tuple[int, str, int]]) -> bool:
    """Whether a window has a step of a trial."""
    return any(start < record.step and record.step - record.steps < start + WITHIN for start, _, _ in begun)


def _trial(workers: list[Workers], start: int, slowed: str, rank: int) -> dict[str, Any]:
    named = next((r for r in workers if start < r.step <= start + WITHIN and r.straggler is not None), None)
    found = named and named.straggler
    return {
        "slowed": slowed,
        "rank": rank,
        "named": found and found.rank,
        "cause": found and found.cause,
        "after": named and named.step - start,
    }


def _other(record: Window) -> float:
    return record.values["other_ms"].mean / record.values["step_ms"].mean
