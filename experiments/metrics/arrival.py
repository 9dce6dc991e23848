"""What the stand-in for Comet's server received, compared with what was to be sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ...plugins.metrics import RunFolder
from ...plugins.metrics.comet.fold import Fold
from ...plugins.metrics.comet.run import experiment_key
from ...plugins.metrics.records import from_line

_NO_LIMIT = 1e12  # values a minute


@dataclass
class Received:
    """What one experiment received.

    made: how often it was created.
    values: of metrics, each with the time of its arrival, in seconds.
    beats: whether it was said to be alive.
    """

    made: int = 0
    project: str | None = None
    workspace: str | None = None
    values: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    batches_of_parameters: int = 0
    tags: list[str] = field(default_factory=list)
    others: dict[str, Any] = field(default_factory=dict)
    beats: list[bool] = field(default_factory=list)

    def counts(self) -> Counter[tuple[str, int, int]]:
        """Return how often each value came, by name, step and time."""
        return Counter((value["metricName"], value["step"], value["timestamp"]) for _, value in self.values)

    @property
    def doubled(self) -> int:
        """Values that came again."""
        return sum(count - 1 for count in self.counts().values())

    def metric(self, name: str) -> list[tuple[int, Any]]:
        """Return a metric's steps and values, as they came."""
        return [(value["step"], value["metricValue"]) for _, value in self.values if value["metricName"] == name]

    def most_in_a_minute(self) -> int:
        """Return the most values that came within any 60 seconds."""
        times = sorted(at for at, _ in self.values)
        most = first = 0
        for last, at in enumerate(times):
            while times[first] < at - 60:
                first += 1
            most = max(most, last - first + 1)
        return most


class Arrival(NamedTuple):
    """Values of a run's folder that were to be sent, and those that came, did not come, and came again."""

    sent: int
    received: int
    lost: int
    doubled: int


def arrival(folder: Path, experiments: Mapping[str, Received]) -> Arrival:
    """Compare a run's folder with what the server received; for runs whose windows were not widened."""
    run = RunFolder(folder)
    shared = run.info()["sinks"]["comet"]
    wanted: Counter[tuple[str, tuple[str, int, int]]] = Counter()
    for file in run.files():
        rank = 0 if file == run.workers_file else int(file.stem.partition("-")[2])
        if shared["mode"] == "main_only" and rank:
            continue
        fold, key = Fold(), experiment_key(shared["experiment"], shared["mode"], rank)
        for record in map(from_line, file.read_bytes().splitlines()):
            if record is not None:
                wanted.update((key, value.identity) for value in fold.feed(record, shared["mode"], _NO_LIMIT))
    came: Counter[tuple[str, tuple[str, int, int]]] = Counter()
    for key, received in experiments.items():
        came.update({(key, identity): count for identity, count in received.counts().items()})
    return Arrival(wanted.total(), came.total(), (wanted - came).total(), (came - wanted).total())
