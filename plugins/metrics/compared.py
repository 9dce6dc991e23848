"""A window of all workers: what they tell each other of it, and what follows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, fields
from statistics import fmean, median

from .records import Across, Spread
from .window import NAN, TIMES, Summary

VALUES = (
    *(f"{name}_ms" for name in TIMES),
    "samples_per_s",
    "tokens_per_s",
    "loss",
    "grad_norm",
    "memory_mb",
    "cpu_percent",
    "gpu_percent",
    "gpu_memory_mb",
    "gpu_watts",
)

_SUMMARY = len(fields(Summary))


def flat(summary: Summary, values: Mapping[str, Spread]) -> list[float]:
    """Return what one worker tells the others: its summary, and the means of its values."""
    return [*astuple(summary), *(values[name].mean if name in values else NAN for name in VALUES)]


class Compared:
    """What all workers told of a window, in rank order; the same on every worker.

    communication: the least that a worker spent in collectives, in milliseconds: their own time. 0 if it is not known.
    """

    def __init__(self, told: Sequence[Sequence[float]]) -> None:
        self.summaries = [Summary(*own[:_SUMMARY]) for own in told]
        self._means = [dict(zip(VALUES, own[_SUMMARY:], strict=True)) for own in told]
        waits = [means["wait_ms"] for means in self._means]
        self.communication = 0.0 if any(map(math.isnan, waits)) else min(waits)

    @property
    def step(self) -> float:
        """The median time of a step, in seconds."""
        return median(summary.step for summary in self.summaries)

    def across(self) -> dict[str, Across]:
        """Return the workers' means, compared."""
        found = {}
        for name in VALUES:
            known = [means[name] for means in self._means if not math.isnan(means[name])]
            if name == "wait_ms" and known:
                found["communication_ms"] = _across([self.communication])
                known = [wait - self.communication for wait in known]
            if known:
                found[name] = _across(known)
        return found


def parted(values: Mapping[str, Spread], communication: float) -> dict[str, Spread]:
    """Return a worker's values with the time in collectives parted into communication and waiting, in milliseconds."""
    if "wait_ms" not in values:
        return dict(values)
    mean, most, p95 = values["wait_ms"]
    own = min(communication, mean)
    wait = Spread(mean - own, max(0.0, most - own), max(0.0, p95 - own))
    return {**values, "communication_ms": Spread.of(own), "wait_ms": wait}


def _across(values: Sequence[float]) -> Across:
    mean, most = fmean(values), max(values)
    return Across(min(values), mean, most, most / mean - 1 if mean else 0.0)
