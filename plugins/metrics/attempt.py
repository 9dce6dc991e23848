"""One worker's measuring in one attempt of a run: from the first step to the last."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from typing import Any, SupportsFloat

from ...adapters.callback import StepRecord
from ...adapters.errors import WorkerLostError
from ...adapters.strategy import Strategy
from .compared import Compared, flat, parted
from .gpu import Gpu
from .lock import RunLock
from .process import Pauses, ProcessUse
from .records import Event, EventName, Logged, Spread, Straggler, Window, Workers
from .sinks import RunInfo
from .stragglers import StragglerWatch
from .window import Steps
from .writer import Writer

SHORTEST = 0.5
"""Seconds that a window lasts at least: quick steps make windows of more steps."""

_MOST_STEPS = 10_000
_CLOSE, _CLOSE_AFTER_A_FAILURE = 30.0, 5.0  # seconds that sinks have at the end

_log = logging.getLogger("farandole")


class Attempt:
    """Measures each step, closes windows on all workers together, and hands records to the sinks.

    step: updates since the run began.
    """

    def __init__(
        self, strategy: Strategy, info: RunInfo, every: int, writer: Writer, lock: RunLock | None, clock: WallClock
    ) -> None:
        self.info, self.step = info, info.step
        self._strategy, self._writer, self._lock, self._clock = strategy, writer, lock, clock
        self._every = self._width = every
        self._steps, self._watch = Steps(), StragglerWatch()
        self._named: Straggler | None = None
        self._communication = 0.0
        self._use = ProcessUse(Gpu.find(strategy))
        self._pauses = Pauses()
        self._pauses.begin()
        self._begun = 0.0
        self._ended: float | None = None  # when the last step did; `None` at the start of an epoch
        self._epoch = 0
        self._logged: list[tuple[int, int, float, Mapping[str, SupportsFloat]]] = []
        self._late: tuple[SupportsFloat, SupportsFloat | None] | None = None  # the last step but one
        self._last: tuple[SupportsFloat, SupportsFloat | None] | None = None
        self._odd: set[str] = set()
        self._done = False
        self._afterwards: Writer | None = None

    def begin_step(self) -> None:
        """Call before a step."""
        self._begun = time.perf_counter()

    def end_step(self, step: StepRecord) -> None:
        """Call after a step, on all workers."""
        now = time.perf_counter()
        self._steps.add(step, self._start_of(step), now, self._pauses.take())
        self.step += 1
        self._epoch = step.progress.epoch
        self._late, self._last = self._last, (step.loss, step.grad_norm)
        if step.logged:
            logged = {name: _detached(value) for name, value in step.logged.items()}
            self._logged.append((self.step, self._epoch, self._clock.at(now), logged))
        if len(self._steps) >= self._width:
            self._close_window()
        self._ended = None if step.progress.step == 0 else time.perf_counter()

    def end(self, error: BaseException | None) -> None:
        """Call after the last step, perhaps on this worker only."""
        try:
            if len(self._steps):
                self._write_window(self._values(read=error is None))
            self._write_logged()
            kind = None if error is None else type(error).__name__
            self.tell("end", "finished" if kind is None else f"ended by {kind}", error=kind)
        finally:
            self._pauses.end()
            self._use.close()
            self._done, self._late, self._last = True, None, None
            del self._strategy  # it may be dropped, though numbers are still logged
            self._writer.close(_CLOSE if error is None else _CLOSE_AFTER_A_FAILURE)
            if self._lock is not None:
                self._lock.release()

    def log(self, numbers: Mapping[str, SupportsFloat]) -> None:
        """Record numbers of this worker at once, also after the end."""
        record = self._record(self.step, self._epoch, self._clock.at(time.perf_counter()), numbers)
        if not self._done:
            self._writer.put(record)
        elif self._afterwards is None:
            self._afterwards = self._writer.again(record)
        else:
            self._afterwards.put(record)

    def settle(self) -> None:
        """Let the sinks have what was logged after the end."""
        writer, self._afterwards = self._afterwards, None
        if writer is not None:
            writer.close(_CLOSE)

    def tell(self, event: EventName, text: str, **details: Any) -> None:
        """Record an event."""
        self._writer.put(Event(**self._position(), event=event, text=text, details=details))

    def _start_of(self, step: StepRecord) -> float:
        if self._ended is not None:
            return self._ended
        # Other work comes between epochs, for example validation: a step begins when it asks for its data. They may be
        # waited for in several phases.
        start = None
        for phase in reversed(step.phases):
            if phase.start < self._begun and phase.name in ("data", "wait") and start in (None, phase.end):
                start = phase.start
        return self._begun if start is None else start

    def _close_window(self) -> None:
        values = self._values(read=True)
        told = self._strategy.gather(flat(self._steps.summary(self._use.faults), values))
        compared = Compared(told)
        self._communication = compared.communication
        steps = len(self._steps)
        self._write_window(values)
        self._write_logged()
        if self._strategy.worker.is_main:
            self._write_workers(compared, steps)
        wanted = self._every * math.ceil(SHORTEST / max(1e-6, compared.step * self._every))
        self._width = max(self._every, min(wanted, 4 * steps, _MOST_STEPS))

    def _values(self, read: bool) -> dict[str, Spread]:
        steps, values = self._steps, self._steps.spreads()
        single = self._use.read()
        if steps.samples is not None:
            single["samples_per_s"] = steps.samples / max(1e-9, steps.seconds)
        if steps.tokens is not None:
            single["tokens_per_s"] = steps.tokens / max(1e-9, steps.seconds)
        if read and self._late is not None:  # that of the last step may still be on its way
            loss, norm = self._late
            single["loss"] = float(loss)
            if norm is not None:
                single["grad_norm"] = float(norm)
        return {**values, **{name: Spread.of(value) for name, value in single.items()}}

    def _write_window(self, values: Mapping[str, Spread]) -> None:
        steps, self._steps = self._steps, Steps()
        self._writer.put(
            Window(
                **self._position(),
                steps=len(steps),
                samples=steps.samples,
                tokens=steps.tokens,
                values=parted(values, self._communication),
            )
        )

    def _write_logged(self) -> None:
        logged, self._logged = self._logged, []
        for each in logged:
            self._writer.put(self._record(*each))

    def _record(self, step: int, epoch: int, at: float, numbers: Mapping[str, SupportsFloat]) -> Logged:
        read = {name: self._number(name, given) for name, given in numbers.items()}
        values = {name: number for name, number in read.items() if number is not None}
        return Logged(attempt=self.info.attempt, rank=self.info.rank, time=at, epoch=epoch, step=step, values=values)

    def _number(self, name: str, given: Any) -> float | None:
        try:
            return float(given)
        except WorkerLostError:
            raise
        except Exception:  # for example a tensor of several elements
            if name not in self._odd:
                self._odd.add(name)
                _log.warning("metrics: the value logged as %r is not a number: %r", name, given)
            return None

    def _write_workers(self, compared: Compared, steps: int) -> None:
        # Shorter windows, before they are widened, show what else the machine does.
        long = compared.step * steps >= SHORTEST / 2
        straggler = self._watch.next(compared.summaries, steps) if long else None
        self._writer.put(Workers(**self._position(), steps=steps, values=compared.across(), straggler=straggler))
        if straggler is not None and not _same(straggler, self._named):
            who = f"worker {straggler.rank} on {self.info.hosts[straggler.rank]}"
            text = (
                f"{who} is slow {_because(straggler.cause)}: the others wait {straggler.impact:.0%} of each step for "
                f"it, {straggler.seconds_an_hour:.0f} s an hour"
            )
            _log.warning("metrics: %s: %s", straggler.level, text)
            self.tell("straggler", text, **vars(straggler))
        elif straggler is None and self._named is not None:
            self.tell("straggler", f"worker {self._named.rank} is no longer slow", rank=None)
        self._named = straggler

    def _position(self) -> dict[str, Any]:
        return {
            "attempt": self.info.attempt,
            "rank": self.info.rank,
            "time": self._clock.at(time.perf_counter()),
            "epoch": self._epoch,
            "step": self.step,
        }


class WallClock:
    """Seconds since 1970 that grow, whatever the machine's clock does in the meantime."""

    def __init__(self) -> None:
        self._wall, self._start = time.time(), time.perf_counter()

    def at(self, moment: float) -> float:
        """Return the time of a moment of `time.perf_counter`."""
        return self._wall + moment - self._start


def _detached(value: Any) -> Any:
    """Return a logged value without the graph that it may hold in PyTorch."""
    detach = getattr(value, "detach", None)
    return value if detach is None else detach()


def _same(one: Straggler, other: Straggler | None) -> bool:
    return other is not None and (one.rank, one.cause, one.level) == (other.rank, other.cause, other.level)


def _because(cause: str) -> str:
    words = {
        "data": "to get its data",
        "gc": "because it collects garbage",
        "memory": "because it reads memory back from a disk (paging)",
        "unexplained": "for a reason that no phase explains",
    }
    return words.get(cause, f"in {cause}")
