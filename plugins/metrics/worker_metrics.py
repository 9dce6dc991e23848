"""Measure each worker's steps, to find a straggler."""

from __future__ import annotations

import time
from statistics import median

from ...adapters.callback import Callback, Run, StepRecord
from ...adapters.progress import Progress


class WorkerMetrics(Callback):
    """Measures each worker's steps, to find a straggler.

    Workers wait for each other inside a step, so it takes the same time on all of them. Between steps (data, callbacks)
    each worker has its own time.

    epochs: for each epoch a list in rank order of `{"step_ms", "step_ms_max", "between_ms", "between_ms_max"}`, medians
        and maxima in milliseconds, the same on every worker. "data_ms" and "wait_ms" follow if the frontend measures
        waiting for data, and the engine waiting for other workers. Data is a part of "between", waiting for others a
        part of "step". The smallest median wait of all workers is the time of the collectives themselves, and is
        subtracted. An epoch that ends early is left out.
    """

    watches = frozenset({"data", "wait"})

    def __init__(self) -> None:
        self.epochs: list[list[dict[str, float]]] = []
        self._run: Run | None = None
        self._seconds: dict[str, list[float]] = {}
        self._begun = self._ended = 0.0

    def on_begin(self, run: Run) -> None:
        self._run = run
        self._begin_epoch()

    def on_step_begin(self, progress: Progress) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, step: StepRecord) -> None:
        now = time.perf_counter()
        # A compiled step fetches its data itself.
        fetches = [phase for phase in step.phases if phase.name == "data" and phase.start > self._begun]
        inside = sum(phase.end - phase.start for phase in fetches)
        self._note("step", now - self._begun - inside)
        if self._ended:
            self._note("between", self._begun - self._ended + inside)
        for name in self.watches:
            if any(phase.name == name for phase in step.phases):
                self._note(name, step.seconds(name))
        self._ended = now
        if step.progress.step == 0:
            self._report(step.progress.epoch - 1)

    def on_end(self, error: BaseException | None) -> None:
        self._run = None  # so that this can be copied

    def on_record(self, epoch: int, workers: list[dict[str, float]]) -> None:
        """Called on every worker with an epoch's measures; override it to log them."""

    def _begin_epoch(self) -> None:
        self._seconds = {"step": [], "between": []}
        self._ended = 0.0  # other work comes between epochs, for example validation

    def _note(self, name: str, seconds: float) -> None:
        self._seconds.setdefault(name, []).append(seconds)

    def _report(self, epoch: int) -> None:
        own: dict[str, float] = {}
        for name, seconds in self._seconds.items():
            own[f"{name}_ms"] = 1000 * median(seconds) if seconds else 0.0
            own[f"{name}_ms_max"] = 1000 * max(seconds, default=0.0)
        assert self._run is not None
        workers = self._run.strategy.gather(own)
        if all("wait_ms" in worker for worker in workers):
            least = min(worker["wait_ms"] for worker in workers)
            for worker in workers:
                worker["wait_ms"] -= least
        self.epochs.append(workers)
        self._begin_epoch()
        self.on_record(epoch, self.epochs[-1])
