"""Runs for the tests of Comet: their folders, records as workers write them, and sinks that send them."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from farandole.plugins.metrics import Across, Logged, Record, RunFolder, RunInfo, Spread, Window, Workers
from farandole.plugins.metrics.comet import Comet
from farandole.plugins.metrics.folder import claim
from farandole.plugins.metrics.records import to_line

START = 1_800_000_000.0


def window(step: int, rank: int = 0, attempt: int = 0, every: int = 10, **values: float) -> Window:
    """Return a window whose numbers name it."""
    measured = {"step_ms": Spread(40.0 + step / 1e3, 60.0 + step / 1e3, 55.0), "data_ms": Spread(1.0, 2.0, 1.5)}
    more = {name: Spread.of(value) for name, value in values.items()}
    at = START + step / 20 + 1000 * attempt
    return Window(
        attempt=attempt, rank=rank, time=at, epoch=0, step=step, steps=every, samples=64, values={**measured, **more}
    )


def workers(step: int, attempt: int = 0) -> Workers:
    """Return what rank 0 finds over all workers."""
    at = START + step / 20 + 1000 * attempt
    values = {"step_ms": Across(40.0, 41.0, 42.0, 0.02)}
    return Workers(attempt=attempt, rank=0, time=at, epoch=0, step=step, steps=10, values=values)


def logged(step: int, rank: int = 0, attempt: int = 0, **values: float) -> Logged:
    """Return what a program logs."""
    at = START + step / 20 + 1000 * attempt
    return Logged(attempt=attempt, rank=rank, time=at, epoch=0, step=step, values=values)


class Run:
    """A run of some workers, whose folder gets records as they write them."""

    def __init__(self, path: Path, world_size: int = 1, **sink: Any) -> None:
        self.path, self.world_size, self.sink = path, world_size, sink
        self.folder = RunFolder(path)
        self.attempt = -1

    def begin(self, step: int = 0) -> list[Comet]:
        """Begin an attempt; return the workers' sinks, opened."""
        about = {"step": step, "world_size": self.world_size, "strategy": "ddp", "options": {"bucket_cap_mb": 25}}
        more = {"frontend": "loop", "launcher": "torchrun", "hosts": ["a"] * self.world_size, "commit": "c0ffee"}
        claimed = claim(self.path, None, self.path.parent, {**about, **more, "versions": {"torch": "2.13.0"}})
        assert claimed.lock is not None
        claimed.lock.release()
        self.attempt = claimed.attempt
        sinks = [Comet(**{"project": "digits", "wait": 5.0, **self.sink}) for _ in range(self.world_size)]
        shared = dict(claimed.earlier.get("sinks", {}).get("comet", {}))
        shared = dict(sinks[0].share(self._info(claimed.run, 0, shared)))
        claimed.folder.change(lambda info: info.setdefault("sinks", {}).update(comet=shared))
        for rank, sink in enumerate(sinks):
            sink.open(self._info(claimed.run, rank, shared))
        return sinks

    def _info(self, run: str, rank: int, shared: dict[str, Any]) -> RunInfo:
        return RunInfo(
            folder=self.path,
            run=run,
            attempt=self.attempt,
            step=0,
            started=START,
            rank=rank,
            world_size=self.world_size,
            local_rank=rank,
            host=socket.gethostname(),
            strategy="ddp",
            options={},
            launcher="torchrun",
            frontend="loop",
            hosts=["a"] * self.world_size,
            commit=None,
            versions={},
            shared=shared,
        )

    def write(self, *records: Record) -> None:
        """Write records as their workers do."""
        for record in records:
            file = self.folder.workers_file if isinstance(record, Workers) else self.folder.worker_file(record.rank)
            with open(file, "a") as stream:
                stream.write(to_line(record) + "\n")
