"""Contract 1: the same curve.

The curves themselves, with clipping, accumulation and schedules, are in `variants`; `plugins/pytest/suite.py` compares
them with the reference.
"""

from __future__ import annotations

import itertools
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ....adapters import Callback, CallbackError, DataError, OptionError, StepRecord, Strategy
from ....adapters.callback import PHASES
from ...metrics import Reader, Record, Window, WorkerMetrics, Workers
from .. import curves
from ..framework import program_of, reference_curve, reference_loss
from ..variants import GLOBAL_BATCH, LOSS_BOUND, VARIANTS
from .common import SHARED, batches_of, same_everywhere, weights_of


@SHARED.add
def replicas_stay_equal_to_the_bit(strategy: Strategy, folder: Path) -> None:
    variant = VARIANTS["adamw"]
    training = curves.prepare(strategy, variant, "float32")
    curves.train(strategy, training, variant, "float32", steps=7)
    assert same_everywhere(strategy, weights_of(training).values())


@SHARED.add
def loss_is_one_number_that_waits_to_be_read(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    losses = [training.step(batch) for batch in batches_of(strategy, training, steps=3)]
    read = [float(loss) for loss in losses]
    assert strategy.gather(read) == [read] * strategy.worker.world_size
    assert losses[0] == read[0] and f"{losses[0]:.3f}" == f"{read[0]:.3f}" and sum(map(float, losses)) == sum(read)
    if strategy.worker.is_main:  # reading is local, so one worker may read alone
        assert math.isfinite(float(training.step(next(batches_of(strategy, training)))))
    else:
        training.step(next(batches_of(strategy, training)))


@SHARED.add
def evaluation_is_the_mean_over_samples(strategy: Strategy, folder: Path) -> None:
    variant, program = VARIANTS["clip"], program_of(strategy)
    training = curves.prepare(strategy, variant, "float32")
    data = tuple(column[:13] for column in program.dataset(variant, "float32"))
    alone = reference_loss(strategy.capabilities.framework, variant, data)

    def nested(model: Any, batch: Any) -> dict[str, Any]:
        loss = program.mean_loss(model, batch)
        return {"loss": loss, "others": [2 * loss, 3.0]}

    for size in (13, 4, 3):  # with a short last batch, and one of a single sample
        found = training.evaluate(data, nested, size)
        assert found["loss"] == pytest.approx(alone, rel=1e-6)
        assert found["others"] == pytest.approx([2 * alone, 3.0], rel=1e-6)
        assert strategy.gather(found) == [found] * strategy.worker.world_size
    one = tuple(column[:1] for column in data)  # fewer samples than workers
    assert np.isfinite(training.evaluate(one, program.mean_loss, 3))

    # Training continues as if nothing had been evaluated.
    reference = reference_curve(strategy.capabilities.framework, "clip", "float32")
    curve, progress = curves.train(strategy, training, variant, "float32", steps=2)
    training.evaluate(data, program.mean_loss, 4)
    more, _ = curves.train(strategy, training, variant, "float32", start=progress, steps=2)
    assert curves.Curve(reference.losses[:2], {}).loss_diff(curve) <= LOSS_BOUND["float32"]
    assert curves.Curve(reference.losses[2:4], {}).loss_diff(more) <= LOSS_BOUND["float32"]

    with pytest.raises(OptionError, match=r"^batch_size=\d (is smaller than|must be at least 1)"):
        training.evaluate(data, program.mean_loss, strategy.worker.world_size - 1)
    with pytest.raises(DataError, match="length 0"):
        training.evaluate(tuple(column[:0] for column in data), program.mean_loss, 4)
    with pytest.raises(OptionError, match="means over the samples"):
        training.evaluate(data, lambda model, batch: batch[0], 4)


class _Watcher(Callback):
    """Watches all phases, and keeps its rank as state."""

    watches = frozenset(PHASES)

    def __init__(self, rank: int) -> None:
        self.records: list[StepRecord] = []
        self.kept = {"rank": rank}

    def on_step_end(self, step: StepRecord) -> None:
        self.records.append(step)
        if len(self.records) == 5:
            raise ValueError("the fifth")

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state


@SHARED.add
def callbacks_watch_and_change_nothing(strategy: Strategy, folder: Path) -> None:
    variant, rank = VARIANTS["clip"], strategy.worker.rank
    watcher = _Watcher(rank)
    training = curves.prepare(strategy, variant, "float32", callbacks=[watcher])
    curve, progress = curves.train(strategy, training, variant, "float32", steps=4)
    reference = reference_curve(strategy.capabilities.framework, "clip", "float32")
    assert curves.Curve(reference.losses[:4], {}).loss_diff(curve) <= LOSS_BOUND["float32"]
    assert [float(record.loss) for record in watcher.records] == list(curve.losses)
    assert watcher.records[-1].progress == progress
    for record in watcher.records:
        assert {"data", "update"} <= {phase.name for phase in record.phases}
        assert all(phase.start <= phase.end for phase in record.phases)

    if strategy.worker.world_size > 1:
        with pytest.raises(OptionError, match=r"worker 1 has the callbacks \[\], worker 0 has \[_Watcher"):
            curves.prepare(strategy, variant, "float32", callbacks=[watcher] if rank == 0 else [])
    training.save(folder / "watched", progress)
    training.load(folder / "watched")
    assert watcher.kept == {"rank": 0}, "rank 0's state is not the saved one"
    with pytest.raises(CallbackError, match=rf"_Watcher.on_step_end on worker {rank} raised ValueError: the fifth"):
        curves.train(strategy, training, variant, "float32", start=progress, steps=1)
    assert {"save", "load"} <= {phase.name for phase in watcher.records[-1].phases}


@SHARED.add
def waiting_for_a_straggler_is_seen(strategy: Strategy, folder: Path) -> None:
    """A lower bound only: on a busy machine all workers wait longer."""
    variant, watcher, worker = VARIANTS["accumulate_4"], _Watcher(strategy.worker.rank), strategy.worker
    training = curves.prepare(strategy, variant, "float32", callbacks=[watcher])
    data = program_of(strategy).dataset(variant, "float32")
    delay, begun = 0.2, []
    for number, batch in zip(range(4), training.batches(data, GLOBAL_BATCH), strict=False):
        if number == 2:  # an evaluation waits too, but is not part of a step
            training.evaluate(data, program_of(strategy).mean_loss, GLOBAL_BATCH)
        strategy.barrier()
        begun.append(time.perf_counter())
        if number > 0 and worker.rank == worker.world_size - 1:  # the first step is compiled
            time.sleep(delay)
        float(training.step(batch))
    for record, start in zip(watcher.records, begun, strict=True):
        assert all(phase.start >= start for phase in record.phases if phase.name == "wait")
        for one, next_one in itertools.pairwise(sorted(record.phases, key=lambda phase: phase.start)):
            assert one.end <= next_one.start, f"{one} and {next_one} overlap"
    waits = strategy.gather(max(record.seconds("wait") for record in watcher.records[1:]))
    assert all(wait >= delay / 2 for wait in waits[:-1]), waits


@SHARED.add
def worker_metrics(strategy: Strategy, folder: Path) -> None:
    """Every worker's numbers are in the run's folder, and a worker that sleeps in its data is named."""
    variant, worker, every = VARIANTS["sgd_momentum"], strategy.worker, 5
    training = curves.prepare(strategy, variant, "float32", callbacks=[WorkerMetrics(folder / "run", every=every)])
    program, slow = program_of(strategy), worker.world_size - 1

    def weight(micro_batch: Any) -> int:
        if worker.rank == slow > 0:
            time.sleep(0.2)
        return len(micro_batch[0])

    batches = training.batches(program.dataset(variant, "float32"), 16, epochs=every, weight=weight)
    found: list[Record] = []
    for last in (every, 2 * every, 3 * every):  # a busy machine may hide it in one window
        for _, batch in zip(range(every), batches, strict=False):
            training.step(batch)
        found = _written(folder / "run", last, worker.world_size)
        of_all = next(record for record in found if isinstance(record, Workers))
        if slow == 0 or of_all.straggler is not None:
            break
    if slow > 0:
        assert of_all.straggler is not None and of_all.values["data_ms"].max >= 200
        assert (of_all.straggler.rank, of_all.straggler.cause) == (slow, "data")
    windows = [record for record in found if isinstance(record, Window)]
    assert sum(window.samples or 0 for window in windows) == every * 16
    for window in windows:
        parts = ("data", "forward", "backward", "update", "communication", "wait", "save", "other")
        split = {name: window.values[f"{name}_ms"].mean for name in parts if f"{name}_ms" in window.values}
        assert {"data", "forward", "backward", "update"} | ({"wait"} if slow > 0 else set()) <= split.keys()
        assert sum(split.values()) == pytest.approx(window.values["step_ms"].mean, rel=1e-3), split
        assert math.isfinite(window.values["loss"].mean) and window.tokens == window.samples


def _written(folder: Path, step: int, workers: int) -> list[Record]:
    """Return the records of the windows up to `step`; they are written in a background thread."""
    until = time.monotonic() + 20
    while True:
        records = [record for record in Reader(folder).poll() if record.step == step]
        ranks = {record.rank for record in records if isinstance(record, Window)}
        if ranks == set(range(workers)) and any(isinstance(record, Workers) for record in records):
            return records
        assert time.monotonic() < until, records
        time.sleep(0.02)
