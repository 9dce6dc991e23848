"""Find the worker that the others wait for, and the phase in which it loses its time.

Workers that reduce gradients together finish each step at the same time, however slow one of them is. It shows in their
waiting: the slow worker waits least. What each of them does itself, its step without waiting, tells how much it loses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from .records import Level, Straggler
from .window import Summary

WARNING, CRITICAL = 0.10, 0.20
"""Shares of a step that a straggler costs."""

EXPLAINS = 0.8
"""The share of a straggler's loss that its cause must explain."""

_CLEAR = 0.14
"""The share that names a worker after one window, if its quick steps are slower than the others' slow ones."""

_FEW = 5
"""Steps of a window that is enough to name a worker."""

_FAULTS = 10
"""Pages read from a disk in a step, more than the other workers read, that count as memory pressure."""

_CAUSES = ("data", "forward", "backward", "update")


@dataclass(frozen=True)
class Suspect:
    """The slowest worker of one window; `clear` says whether the window alone is enough to name it."""

    rank: int
    cause: str
    impact: float
    clear: bool


class StragglerWatch:
    """Names a straggler after one clear window, or after two in a row."""

    def __init__(self) -> None:
        self._before: Suspect | None = None
        self._named: int | None = None

    def next(self, workers: Sequence[Summary], steps: int) -> Straggler | None:
        """Return the straggler, from the next window of `steps` steps of all workers in rank order."""
        suspect, before = suspect_of(workers), self._before
        self._before = suspect
        if suspect is None:
            self._named = None
            return None
        again = before is not None and before.rank == suspect.rank
        if not ((suspect.clear and steps >= _FEW) or again or self._named == suspect.rank):
            self._named = None
            return None
        self._named = suspect.rank
        level: Level = "critical" if suspect.impact >= CRITICAL else "warning"
        return Straggler(suspect.rank, suspect.cause, suspect.impact, level, 3600 * suspect.impact)


def suspect_of(workers: Sequence[Summary]) -> Suspect | None:
    """Return the worker that costs the others at least `WARNING` of a step; `None` if there is none.

    Where waiting is not measured, a worker's own time is not known either, and only waiting for data is compared.
    """
    if len(workers) < 2:
        return None
    waits = [worker.wait for worker in workers]
    timed = not any(map(math.isnan, waits))
    own = [worker.busy if timed else _number(worker.data) for worker in workers]
    rank = max(range(len(own)), key=own.__getitem__)
    others = [worker for number, worker in enumerate(workers) if number != rank]
    slow = workers[rank]
    excess = own[rank] - median(value for number, value in enumerate(own) if number != rank)
    if slow.step <= 0 or excess < WARNING * slow.step:
        return None
    if timed and median(worker.wait for worker in others) - slow.wait < excess / 2:
        return None  # nobody waits for it
    clear = excess >= _CLEAR * slow.step and (not timed or slow.low > median(worker.high for worker in others))
    return Suspect(rank, _cause(slow, others, excess) if timed else "data", excess / slow.step, clear)


def _cause(slow: Summary, others: Sequence[Summary], excess: float) -> str:
    def more(name: str) -> float:
        return _number(getattr(slow, name)) - median(_number(getattr(worker, name)) for worker in others)

    if more("gc") >= EXPLAINS * excess:
        return "gc"
    phase = next((name for name in _CAUSES if more(name) >= EXPLAINS * excess), "unexplained")
    if phase != "data" and more("faults") >= _FAULTS:
        return "memory"
    return phase


def _number(value: float) -> float:
    return 0.0 if math.isnan(value) else value
