"""Begin an attempt of a run: agree on its folder, write down what it is, and open the sinks."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...adapters.callback import Run
from ...adapters.errors import OptionError
from ...adapters.progress import Progress
from ..launch.installed import versions
from .attempt import Attempt, WallClock
from .folder import Claimed, Reader, claim
from .json_lines import JsonLines
from .records import Event, finite
from .sinks import RunInfo, Sink
from .writer import Writer, named, with_shared

_RUNS = Path("runs")  # where runs get folders if none is given

_log = logging.getLogger("farandole")


@dataclass(frozen=True)
class Wanted:
    """Where a run is to be written.

    folder: the one that the program gave, or that the run had before; `None` makes a new one.
    given: whether the program gave it.
    run: the run that it must hold, if it holds one.
    step: updates since the run began; `None` if they are not known.
    parameters: of the program's own.
    """

    folder: Path | None
    given: bool
    run: str | None
    step: int | None
    parameters: Mapping[str, Any]


def open_attempt(run: Run, wanted: Wanted, every: int, sinks: Sequence[Sink]) -> Attempt:
    """Begin an attempt; all workers call it together."""
    strategy, worker, clock = run.strategy, run.strategy.worker, WallClock()
    hosts = strategy.gather(socket.gethostname())
    entry = {
        "world_size": worker.world_size,
        "strategy": strategy.name,
        "options": _plain(strategy.options),
        "launcher": strategy.launch.launcher,
        "frontend": run.frontend,
        "parameters": _plain(wanted.parameters),
        "hosts": hosts,
        "commit": _commit() if worker.is_main else None,
        "versions": versions() if worker.is_main else {},
    }
    claimed: Claimed | None = None
    found: tuple[RunInfo, dict[str, Any]] | None = None
    if worker.is_main:
        claimed, found = _claim(run, wanted, entry, sinks)
    told, shared = strategy.broadcast(found)
    info: RunInfo = replace(told, rank=worker.rank, local_rank=worker.local_rank, host=hosts[worker.rank])
    opened = [(sink, replace(info, shared=shared.get(name, {}))) for name, sink in named(sinks)]
    begin = Event(
        attempt=info.attempt,
        rank=info.rank,
        time=clock.at(time.perf_counter()),
        epoch=run.progress.epoch,
        step=info.step,
        event="begin",
        text=f"worker {info.rank} of {info.world_size} on {info.host}: {info.strategy}",
        details={"host": info.host, "run": info.run, "world_size": info.world_size},
    )
    writer = Writer(info, JsonLines(), opened, begin)
    attempt = Attempt(strategy, info, every, writer, None if claimed is None else claimed.lock, clock)
    if claimed is not None and claimed.earlier.get("attempts"):
        before = claimed.earlier["attempts"][-1].get("world_size", worker.world_size)
        if before != worker.world_size:
            text = f"{worker.world_size} workers instead of {before}"
            attempt.tell("world_size", text, before=before, after=worker.world_size)
    return attempt


def _claim(
    run: Run, wanted: Wanted, entry: Mapping[str, Any], sinks: Sequence[Sink]
) -> tuple[Claimed, tuple[RunInfo, dict[str, Any]]]:
    folder, notes = wanted.folder, []
    if folder is not None and not wanted.given and not folder.exists():
        notes.append(f"the run's folder {folder} is gone: it goes on in a new one")
        folder = None
    step = wanted.step if wanted.step is not None or folder is None else _last_step(folder, run.progress)
    claimed = claim(folder, wanted.run, _RUNS.absolute(), {**entry, "step": step or 0})
    for note in [*notes, *claimed.notes]:
        _log.warning("metrics: %s", note)
    _log.info("metrics of each worker: %s", claimed.folder.path)
    known = claimed.earlier.get("sinks", {})
    info = RunInfo(
        folder=claimed.folder.path,
        run=claimed.run,
        attempt=claimed.attempt,
        step=step or 0,
        started=claimed.earlier.get("started", time.time()),
        rank=0,
        local_rank=0,
        host="",
        **entry,
    )
    shared = with_shared(sinks, info, known)
    if shared != known:
        try:
            claimed.folder.change(lambda written: written.update(sinks={**known, **shared}))
        except (OSError, OptionError) as error:
            _log.warning("metrics: what sinks share cannot be written: %s", error)
    return claimed, (info, shared)


def _last_step(folder: Path, progress: Progress) -> int | None:
    """Return the last step that a folder has, for a program that goes on without the callback's state."""
    if (progress.loop, progress.epoch, progress.step) == (0, 0, 0):
        return None  # it begins anew
    try:
        return max((record.step for record in Reader(folder).poll()), default=None)
    except (OSError, OptionError):
        return None


def _plain(options: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(finite(options), default=repr, skipkeys=True))


def _commit() -> str | None:
    """Return the commit of the program's git repository; `None` if there is none."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    where = Path(main).absolute().parent if main else Path.cwd()
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=where, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
