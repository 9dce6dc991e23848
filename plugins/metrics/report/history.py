"""What happened in a run, from its records: curves by step, each worker's time, stragglers, restarts."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..records import Event, Logged, Record, Straggler, Window, Workers

Numbers = NDArray[np.float64]

SPLIT = ("data", "forward", "backward", "communication", "update", "save", "load", "other", "wait")
"""Where the time of a step goes: what a worker does, then waiting for the others."""

SHOWN_NAMES = 12
"""The program's own numbers that are kept as curves."""


@dataclass(frozen=True)
class Curve:
    """Values by step; NaN where there is none.

    high: the highest value near each step.
    """

    step: Numbers
    value: Numbers
    high: Numbers | None = None


@dataclass(frozen=True)
class Waiting:
    """The share of its time that each worker waited for others: `percent[worker, step]`, NaN where it was not there."""

    workers: list[int]
    step: Numbers
    percent: Numbers


@dataclass
class Total:
    """A value over all windows of one worker; what is not finite is left out of the mean."""

    mean: float = math.nan
    max: float = math.nan
    _weight: int = 0

    def add(self, mean: float, high: float, weight: int) -> None:
        if math.isfinite(mean):
            self._weight += weight
            self.mean = mean if math.isnan(self.mean) else self.mean + (mean - self.mean) * weight / self._weight
        if math.isfinite(high):
            self.max = high if math.isnan(self.max) else max(self.max, high)


@dataclass
class Span:
    """What was seen of one attempt.

    first: the step that it continued from.
    begun, ended: in seconds since 1970, by the clock of the worker `clock`: those of other hosts may be far from it.
    """

    first: int
    last: int
    begun: float
    ended: float
    clock: int


_COLUMNS = ("attempt", "rank", "end", "steps", "samples", "step_ms", "wait_ms", "loss", "highest_loss")


class History:
    """Collects the records of a run, in any order of workers, and answers with arrays.

    spans: by attempt.
    totals: by rank and name of value.
    stragglers: the windows that have one.
    names: all names of the program's own numbers.
    not_finite: steps at which the loss was not finite.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.spans: dict[int, Span] = {}
        self.totals: dict[int, dict[str, Total]] = {}
        self.stragglers: list[tuple[Workers, Straggler]] = []
        self.events: list[Event] = []
        self.names: set[str] = set()
        self.not_finite: set[int] = set()
        self._flat = array("d")
        self._logged: dict[str, array[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        """Take in a record."""
        match record:
            case Window():
                self._add_window(record)
            case Logged():
                self._add_logged(record)
            case Workers(straggler=Straggler() as straggler):
                self.stragglers.append((record, straggler))
            case Event():
                self.events.append(record)

    def _add_window(self, window: Window) -> None:
        nothing = (math.nan, math.nan, math.nan)
        values = window.values
        loss = values.get("loss", nothing)
        if "loss" in values and not math.isfinite(loss[1]):
            self.not_finite.add(window.step)
        self._flat.extend(
            (
                window.attempt,
                window.rank,
                window.step,
                window.steps,
                math.nan if window.samples is None else window.samples,
                values.get("step_ms", nothing)[0],
                values.get("wait_ms", nothing)[0],
                loss[0],
                loss[1],
            )
        )
        totals = self.totals.setdefault(window.rank, {})
        for name, spread in values.items():
            totals.setdefault(name, Total()).add(spread[0], spread[1], window.steps)
        first = window.step - window.steps
        span = self.spans.get(window.attempt)
        if span is None:
            begun = window.time - window.steps * values.get("step_ms", (0.0, 0.0, 0.0))[0] / 1000
            span = Span(first, window.step, begun, window.time, window.rank)
            self.spans[window.attempt] = span
        span.first, span.last = min(span.first, first), max(span.last, window.step)
        if window.rank == span.clock:
            span.ended = max(span.ended, window.time)

    def _add_logged(self, logged: Logged) -> None:
        for name, value in logged.values.items():
            if name not in self._logged:
                self.names.add(name)
                if len(self._logged) >= SHOWN_NAMES:
                    continue
                self._logged[name] = array("d")
            self._logged[name].extend((logged.attempt, logged.step, value))

    # What was seen.

    def total(self, rank: int, name: str) -> Total:
        """Return a value over all windows of a worker; NaN if it was not measured."""
        return self.totals[rank].get(name, Total())

    @property
    def ranks(self) -> list[int]:
        return sorted(self.totals)

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step."""
        spans = self.spans.values()
        return min((span.first for span in spans), default=0), max((span.last for span in spans), default=0)

    @property
    def seconds(self) -> float:
        """How long the attempts took together."""
        return sum(span.ended - span.begun for span in self.spans.values())

    @property
    def resized(self) -> list[Event]:
        """The changes of the world size that were no restart."""
        changes = [event for event in self.events if event.event == "world_size"]
        return [each for each in changes if each.attempt in self.spans and each.step > self.spans[each.attempt].first]

    def redone(self, attempt: int) -> int:
        """Return how many steps of earlier attempts this one did again."""
        before = [span.last for number, span in self.spans.items() if number < attempt]
        return max(0, max(before) - self.spans[attempt].first) if before else 0

    def loss(self, limit: int) -> Curve | None:
        """Return the mean over all workers, in at most `limit` points; `None` if it is unknown."""
        rows = self._rows()
        known = np.isfinite(rows["loss"])
        if not known.any():
            return None
        step, group = _grouped(rows["end"], limit)
        high = np.full(len(step), -np.inf)
        np.maximum.at(high, group[known], np.fmax(rows["loss"], rows["highest_loss"])[known])
        high[~np.isfinite(high)] = np.nan
        return Curve(step, _mean(group, rows["loss"], rows["steps"], len(step)), high)

    def speed(self, limit: int) -> tuple[str, Curve] | None:
        """Return samples a second of all workers together; if samples are unknown, steps a second."""
        rows = self._rows()
        if not np.isfinite(rows["step_ms"]).any():
            return None
        step, group = _grouped(rows["end"], limit)
        _, window = np.unique(rows["end"], return_inverse=True)
        workers = np.bincount(window)[window]  # that were there
        counted = np.isfinite(rows["samples"]).any()
        work = np.nan_to_num(rows["samples"]) if counted else rows["steps"] / workers
        seconds = rows["steps"] * np.nan_to_num(rows["step_ms"]) / 1000 / workers
        done = np.bincount(group, work, len(step))
        with np.errstate(divide="ignore", invalid="ignore"):
            rate = done / np.bincount(group, seconds, len(step))
        return ("samples" if counted else "steps", Curve(step, rate))

    def waiting(self, columns: int) -> Waiting | None:
        """Return how much each worker waited, in at most so many columns; `None` if it was not measured."""
        rows = self._rows()
        if not np.isfinite(rows["wait_ms"]).any():
            return None
        step, group = _grouped(rows["end"], columns)
        ranks, worker = np.unique(rows["rank"], return_inverse=True)
        place = worker * len(step) + group
        with np.errstate(divide="ignore", invalid="ignore"):
            share = 100 * rows["wait_ms"] / rows["step_ms"]
        percent = _mean(place, share, rows["steps"], len(ranks) * len(step)).reshape(len(ranks), len(step))
        return Waiting([int(rank) for rank in ranks], step, percent)

    def split(self) -> dict[str, list[float]]:
        """Return the mean milliseconds of a step by phase, for each worker in the order of `ranks`."""
        found = {}
        for phase in SPLIT:
            name = f"{phase}_ms"
            if any(name in totals for totals in self.totals.values()):
                found[phase] = [self.total(rank, name).mean for rank in self.ranks]
        return found

    def logged(self, limit: int) -> dict[str, Curve]:
        """Return the program's own numbers, the mean over the workers that gave them."""
        curves = {}
        for name, flat in self._logged.items():
            attempt, end, value = np.frombuffer(flat, dtype=np.float64).reshape(-1, 3).T
            kept = self._kept(attempt, end)
            step, group = _grouped(end[kept], limit)
            curves[name] = Curve(step, _mean(group, value[kept], np.ones(kept.sum()), len(step)))
        return curves

    def _rows(self) -> dict[str, Numbers]:
        """Return the windows by column, without those that a later attempt did again."""
        table = np.frombuffer(self._flat, dtype=np.float64).reshape(-1, len(_COLUMNS))
        rows = dict(zip(_COLUMNS, table.T, strict=True))
        kept = self._kept(rows["attempt"], rows["end"])
        return {name: column[kept] for name, column in rows.items()}

    def _kept(self, attempt: Numbers, end: Numbers) -> NDArray[np.bool_]:
        kept = np.ones(len(end), dtype=bool)
        for number, span in self.spans.items():
            kept &= (attempt >= number) | (end <= span.first)
        return kept


def _grouped(ends: Numbers, limit: int) -> tuple[Numbers, NDArray[np.int64]]:
    """Put neighbouring steps into at most `limit` groups: the last step of each, and the group of each row."""
    steps, place = np.unique(ends, return_inverse=True)
    groups = min(limit, len(steps))
    of_step = np.arange(len(steps)) * groups // max(1, len(steps))
    last = np.searchsorted(of_step, np.arange(groups), side="right") - 1
    return steps[last], of_step[place]


def _mean(group: NDArray[np.int64], values: Numbers, weights: Numbers, groups: int) -> Numbers:
    """Return the weighted mean of each group's finite values."""
    known = np.isfinite(values)
    total = np.bincount(group[known], values[known] * weights[known], groups)
    with np.errstate(invalid="ignore"):
        mean: Numbers = total / np.bincount(group[known], weights[known], groups)
    return mean
