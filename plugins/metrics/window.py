"""One worker's times over some steps, and what of them is compared with the other workers'."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from ...adapters.callback import StepRecord
from .records import Spread

PHASES = ("data", "forward", "backward", "update", "wait", "save")
"""The phases of a step that are measured; what is left is "other", for example the program's own work."""

PARTS = (*PHASES, "other")
TIMES = ("step", *PARTS, "gc")
"""All times. Garbage collection is inside of the parts, of which the step is the sum."""

NAN = math.nan


@dataclass(frozen=True)
class Summary:
    """What workers tell each other of a window: medians over its steps, in seconds; NaN where a phase is not measured.

    low, high: the quartiles of the steps' times without waiting.
    faults: pages that had to be read from a disk, by step.
    """

    step: float
    data: float
    forward: float
    backward: float
    update: float
    wait: float
    save: float
    other: float
    gc: float
    low: float
    high: float
    faults: float

    @property
    def busy(self) -> float:
        """The step without waiting."""
        return self.step - (0.0 if math.isnan(self.wait) else self.wait)


class Steps:
    """The steps of a window, as they come."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {name: [] for name in TIMES}
        self._seen: set[str] = set()
        self.samples: int | None = 0
        self.tokens: float | None = 0.0

    def __len__(self) -> int:
        return len(self._seconds["step"])

    def add(self, step: StepRecord, start: float, end: float, gc: float) -> None:
        """Add a step that took from `start` to `end`, of which `gc` seconds were garbage collection.

        A phase before the start is left out, because it belongs to what came between two epochs; but a checkpoint that
        was saved there counts.
        """
        seconds, whole = dict.fromkeys(PHASES, 0.0), end - start
        for name, _, began, ended in step.phases:
            if name not in seconds or (ended <= start and name != "save"):
                continue
            if name == "save" and began < start:
                whole += min(ended, start) - began
            seconds[name] += ended - (began if name == "save" else max(began, start))
            self._seen.add(name)
        for name, value in seconds.items():
            self._seconds[name].append(value)
        self._seconds["step"].append(whole)
        self._seconds["other"].append(max(0.0, whole - sum(seconds.values())))
        self._seconds["gc"].append(gc)
        self.samples = None if step.samples is None or self.samples is None else self.samples + step.samples
        self.tokens = None if step.tokens is None or self.tokens is None else self.tokens + step.tokens

    @property
    def seconds(self) -> float:
        """The time of all steps together."""
        return sum(self._seconds["step"])

    def summary(self, faults: float) -> Summary:
        """Return what to compare; `faults` is the number in the whole window."""
        medians = {name: self._median(name) for name in TIMES}
        busy = sorted(step - wait for step, wait in zip(self._seconds["step"], self._seconds["wait"], strict=True))
        return Summary(**medians, low=_quantile(busy, 0.25), high=_quantile(busy, 0.75), faults=faults / len(self))

    def spreads(self) -> dict[str, Spread]:
        """Return the times in milliseconds, by their names in a record."""
        told = [name for name in TIMES if self._told(name)]
        return {f"{name}_ms": spread_of(1000 * value for value in self._seconds[name]) for name in told}

    def _told(self, name: str) -> bool:
        return name in self._seen or name not in PHASES

    def _median(self, name: str) -> float:
        return median(self._seconds[name]) if self._told(name) else NAN


def spread_of(values: Iterable[float]) -> Spread:
    """Return the mean, the maximum and the 95th percentile (the nearest rank) of at least one value."""
    ordered = sorted(values)
    return Spread(fmean(ordered), ordered[-1], _quantile(ordered, 0.95))


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
