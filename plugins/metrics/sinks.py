"""Where a run's records go: the protocol of sinks, and those of other distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ...adapters.errors import OptionError, did_you_mean
from .records import Record

ENTRY_POINT_GROUP = "farandole.sinks"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run, and one worker's place in it.

    folder: the run's folder, which all workers of a machine share.
    run: the run's id, the same in all its attempts.
    attempt: how often it was started before.
    step: where this attempt begins.
    started: when it began, in seconds since 1970.
    rank, world_size, local_rank, host: this worker's.
    strategy, options, launcher, frontend: as the program and the launcher chose them.
    hosts: of all workers, in rank order.
    commit: of the program's git repository, if it is in one.
    versions: of the installed distributions that matter here.
    parameters: of the program's own, as given to `WorkerMetrics`.
    shared: what the sink's `share` returned on rank 0.
    """

    folder: Path
    run: str
    attempt: int
    step: int
    started: float
    rank: int
    world_size: int
    local_rank: int
    host: str
    strategy: str
    options: Mapping[str, Any]
    launcher: str
    frontend: str
    hosts: Sequence[str]
    commit: str | None
    versions: Mapping[str, str]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)


class Sink:
    """Base of all sinks; every method does nothing until it is overridden.

    Each worker has its own sink. All methods but `share` are called in a background thread, which training never waits
    for. Where one raises, the reason is logged once, and the sink gets the next records all the same.

    name: under which the run's folder keeps what `share` returned; by default the name of the class.
    """

    name: str = ""

    def share(self, run: RunInfo) -> Mapping[str, Any]:
        """Return what the sinks of all workers need to know, as JSON; called on rank 0, before `open`.

        `run.shared` is what it returned in the run's last attempt. Use no network here: training waits.
        """
        return run.shared

    def open(self, run: RunInfo) -> None:
        """Called before the first record."""

    def write(self, record: Record) -> None:
        """Called with each of this worker's records, in order. Rank 0 also has those of all workers together."""

    def close(self) -> None:
        """Called after the last record. The process may end if it takes more than `WorkerMetrics` waits for."""


def resolve(sinks: Sequence[Sink | str]) -> list[Sink]:
    """Return sinks, of which some are named as in the entry-point group `farandole.sinks`.

    Raises:
        OptionError: there is none of this name, or it is not a sink.
    """
    return [_named(sink) if isinstance(sink, str) else _checked(sink) for sink in sinks]


def _named(name: str) -> Sink:
    found = {each.name: each for each in entry_points(group=ENTRY_POINT_GROUP)}
    if name not in found:
        listed = ", ".join(found) or "none is installed"
        raise OptionError(f"there is no sink {name!r}.{did_you_mean(name, found)} Registered: {listed}")
    return _checked(found[name].load()())


def _checked(sink: Any) -> Sink:
    if not isinstance(sink, Sink):
        kind = f"the class {sink.__name__}" if isinstance(sink, type) else f"a {type(sink).__name__}"
        raise OptionError(f"sinks are instances of farandole.plugins.metrics.Sink or registered names, not {kind}")
    return sink
