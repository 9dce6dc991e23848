"""Measure each worker's steps, find the worker that the others wait for, and keep the numbers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat

from ...adapters.callback import Callback, Run, StepRecord
from ...adapters.errors import OptionError
from ...adapters.progress import Progress
from .attempt import Attempt
from .opening import Wanted, open_attempt
from .sinks import Sink, resolve
from .window import PHASES

_log = logging.getLogger("farandole")


class WorkerMetrics(Callback):
    """Measures where each worker's time goes, and writes it to the run's folder, and to other sinks.

    Each `every` steps, and at least half a second, make a window. All workers close it together, with one small
    gather, and rank 0 compares them: a worker that the others wait for is named, with the phase in which it loses its
    time. `training.log` adds your own numbers. `records` says what is written.

    After a restart the run goes on in its folder, which travels in checkpoints, or is given again.

    Args:
        folder: the run's folder; by default the next free `runs/N` in the working directory. If it holds another run
            than the checkpoint's, or another job writes it, the numbers go to a new folder beside it.
        every: steps of a window.
        sinks: where records go as well: `Sink`s, or names of the entry-point group `farandole.sinks`.

    Raises:
        OptionError: `every` is not positive, or a sink is not one.

    folder: the run's folder; `None` before training has begun.
    parameters: of the program's own, to note with the run (JSON); set them before training begins.
    """

    watches = frozenset(PHASES)

    def __init__(
        self, folder: str | PathLike[str] | None = None, *, every: int = 10, sinks: Sequence[Sink | str] = ()
    ) -> None:
        if every < 1:
            raise OptionError(f"every={every} must be at least 1 step")
        self.folder: Path | None = None
        self._given = None if folder is None else Path(folder)
        self._every = every
        self._sinks = resolve(sinks)
        self._state: dict[str, Any] = {}  # {"folder": ..., "run": id, "step": updates}
        self._run: Run | None = None
        self._attempt: Attempt | None = None
        self._ended: Attempt | None = None
        self._early: list[Mapping[str, SupportsFloat]] = []
        self.parameters: dict[str, Any] = {}

    def on_begin(self, run: Run) -> None:
        self._run = run
        self._open()

    def on_step_begin(self, progress: Progress) -> None:
        if self._attempt is None:  # a checkpoint was loaded in the meantime
            self._open()
        assert self._attempt is not None
        self._attempt.begin_step()

    def on_step_end(self, step: StepRecord) -> None:
        assert self._attempt is not None
        self._attempt.end_step(step)

    def on_end(self, error: BaseException | None) -> None:
        self._close(error)
        self._run = None

    def log(self, values: Mapping[str, SupportsFloat]) -> None:
        """Record numbers of this worker's own, also between steps, and before or after the training."""
        attempt = self._attempt or self._ended
        if attempt is not None:
            attempt.log(values)
        else:
            self._early.append(dict(values))

    def settle(self) -> None:
        """Let the sinks have what was logged after the training; for a program that logs then."""
        if self._ended is not None:
            self._ended.settle()
        elif self._early and self._attempt is None:
            self._early.clear()
            _log.warning("metrics: numbers that were logged without any training are not kept: they belong to no run")

    def state_dict(self) -> dict[str, Any]:
        """Return where the run is: its folder, its id, and its updates."""
        if self._attempt is not None:
            self._state["step"] = self._attempt.step
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the run of a checkpoint, in its next attempt."""
        self._close(None)
        self._state = dict(state)

    def __getstate__(self) -> dict[str, Any]:
        """Without the running attempt: a copy begins its own."""
        return {**self.__dict__, "_attempt": None, "_ended": None, "_run": None, "_state": dict(self.state_dict())}

    def _open(self) -> None:
        assert self._run is not None
        if self._ended is not None:
            self._ended.settle()
            self._ended = None
        known = self._state.get("folder")
        folder = self._given or (None if known is None else Path(known))
        wanted = Wanted(
            folder, self._given is not None, self._state.get("run"), self._state.get("step"), self.parameters
        )
        self._attempt = open_attempt(self._run, wanted, self._every, self._sinks)
        info = self._attempt.info
        self.folder = info.folder
        self._state = {"folder": str(info.folder.absolute()), "run": info.run, "step": info.step}
        early, self._early = self._early, []
        for values in early:
            self._attempt.log(values)

    def _close(self, error: BaseException | None) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            self._state["step"] = attempt.step
            attempt.end(error)
            self._ended = attempt
