"""A run's folder: its name, what it says of the run, who may write it, and how it is read.

run.json         the run and its attempts, written by rank 0: {"format": 1, "run": id, "started": seconds since 1970,
                 "attempts": [{"started", "step", "world_size", "strategy", "options", "frontend", "launcher",
                 "parameters", "hosts", "commit", "versions"}, ...], "sinks": {name: what its workers share}}
worker-R.jsonl   the windows and logged numbers of worker R, and its events if it is not rank 0
workers.jsonl    what rank 0 found over all workers, and its events
run.lock         held by rank 0 of the job that writes
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.checkpoint.storage import Storage
from ...adapters.errors import CheckpointError, OptionError
from .lock import Held, RunLock
from .records import Record, finite, from_line

FORMAT = 1

_FILE, _LOCK, _WORKERS = "run.json", "run.lock", "workers.jsonl"
_WORKER = re.compile(r"worker-(\d+)\.jsonl")
_changing = threading.Lock()


class RunFolder:
    """The folder of one run, for reading; rank 0 of its job also changes `run.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def info(self) -> dict[str, Any]:
        """Return what `run.json` says.

        Raises:
            OptionError: there is none, it is damaged, or another version wrote it.
        """
        try:
            info = json.loads((self.path / _FILE).read_text())
        except FileNotFoundError:
            raise OptionError(f"{self.path} is not the folder of a run: it has no {_FILE}") from None
        except (OSError, ValueError) as error:
            raise OptionError(f"{self.path / _FILE} cannot be read: {error}") from None
        if not isinstance(info, dict) or info.get("format") != FORMAT:
            raise OptionError(f"{self.path / _FILE} is not of format {FORMAT}: another version of farandole wrote it")
        attempts, sinks = info.setdefault("attempts", []), info.get("sinks", {})
        if not (isinstance(attempts, list) and all(isinstance(each, dict) for each in attempts)):
            raise OptionError(f"{self.path / _FILE} is damaged: it has no list of attempts")
        if not (isinstance(sinks, dict) and all(isinstance(each, dict) for each in sinks.values())):
            raise OptionError(f"{self.path / _FILE} is damaged: what sinks share cannot be read")
        return info

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit `run.json` in place, atomically; for the process that holds the lock, from any of its threads.

        Raises:
            OSError: it cannot be written.
        """
        with _changing:
            info = self.info()
            edit(info)
            self.put(info)

    def worker_file(self, rank: int) -> Path:
        """Return the file of one worker."""
        return self.path / f"worker-{rank}.jsonl"

    @property
    def workers_file(self) -> Path:
        """The file of rank 0 about all workers."""
        return self.path / _WORKERS

    def files(self) -> list[Path]:
        """Return the files of records: those of workers in the order of their ranks, then that of all."""
        found = [(int(name[1]), path) for path in self.path.iterdir() if (name := _WORKER.fullmatch(path.name))]
        return [*(path for _, path in sorted(found)), *(path for path in [self.workers_file] if path.exists())]

    def put(self, info: Mapping[str, Any]) -> None:
        """Write `run.json` anew, atomically; for the process that holds the lock.

        Raises:
            OSError: it cannot be written.
        """
        Storage(self.path).put(_FILE, json.dumps(finite(info), indent=1, default=str).encode())


class Reader:
    """Reads a run's records, also while they are written.

    skipped: how many lines were torn, or of a kind that is not known.

    Raises:
        OptionError: it is not the folder of a run.
    """

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        self.folder.info()
        self.skipped = 0
        self._read: dict[Path, int] = {}  # bytes

    def poll(self) -> list[Record]:
        """Return the records since the last call, those of one file after those of another, each in order.

        A line that is not whole yet is left for the next call; one that never became whole is skipped.
        """
        return list(self.records())

    def records(self) -> Iterator[Record]:
        """Yield what `poll` returns, one file after the other: a run of many workers may not fit into memory."""
        for path in self.folder.files():
            yield from self._lines(path)

    def _lines(self, path: Path) -> Iterator[Record]:
        with open(path, "rb") as file:
            file.seek(self._read.get(path, 0))
            content = file.read()
        whole = content.rfind(b"\n") + 1
        self._read[path] = self._read.get(path, 0) + whole
        for line in content[:whole].splitlines():
            if (record := from_line(line)) is not None:
                yield record
            else:
                self.skipped += 1


@dataclass(frozen=True)
class Claimed:
    """A folder that rank 0 may write.

    attempt: how often the run was started before.
    earlier: the file `run.json` as it was; empty in a new run.
    notes: why it is not the folder that was asked for, or cannot be written.
    """

    folder: RunFolder
    run: str
    attempt: int
    earlier: Mapping[str, Any]
    lock: RunLock | None
    notes: tuple[str, ...] = ()


def claim(wanted: Path | None, run: str | None, base: Path, attempt: Mapping[str, Any]) -> Claimed:
    """Lock a folder for an attempt of a run, and write that down; rank 0 calls it.

    Args:
        wanted: the folder; a new one in `base` if it is `None`.
        run: the run that it must hold if it holds one; `None` if any is right.
        attempt: the attempt's entry in `run.json`.
    """
    notes: list[str] = []
    try:
        if wanted is not None:
            try:
                return _begin(wanted, run, attempt, notes)
            except (Held, OptionError) as reason:
                notes.append(f"{wanted} is not written: {reason}")
        fresh = _fresh(base, "", 1) if wanted is None else _fresh(wanted.parent, f"{wanted.name}-", 2)
        notes = [f"{note}. This run is in {fresh}" for note in notes]
        return _begin(fresh, None, attempt, notes)
    except (OSError, CheckpointError) as error:
        path = wanted or base / "1"
        notes.append(f"cannot write to {path}: {error}")
        return Claimed(RunFolder(path), uuid.uuid4().hex, 0, {}, None, tuple(notes))


def _begin(path: Path, run: str | None, attempt: Mapping[str, Any], notes: list[str]) -> Claimed:
    path.mkdir(parents=True, exist_ok=True)
    lock = RunLock(path / _LOCK)
    folder = RunFolder(path)
    try:
        earlier = folder.info() if (path / _FILE).exists() else {}
        if earlier and run is not None and earlier.get("run") != run:
            raise OptionError("it holds another run than the checkpoint's")
        entry = {"started": time.time(), **attempt}
        info = {"format": FORMAT, "run": uuid.uuid4().hex, "started": entry["started"], "attempts": [], **earlier}
        info["attempts"] = [*info["attempts"], entry]
        folder.put(info)
    except BaseException:
        lock.release()
        raise
    return Claimed(folder, info["run"], len(info["attempts"]) - 1, earlier, lock, tuple(notes))


def _fresh(parent: Path, prefix: str, first: int) -> Path:
    """Make a folder with the next free number."""
    parent.mkdir(parents=True, exist_ok=True)
    names = [each.name for each in parent.iterdir() if each.name.startswith(prefix)]
    numbers = [int(name[len(prefix) :]) for name in names if name[len(prefix) :].isdigit()]
    for number in itertools.count(max([first, *(number + 1 for number in numbers)])):
        try:
            (parent / f"{prefix}{number}").mkdir()
        except FileExistsError:
            continue
        return parent / f"{prefix}{number}"
    raise AssertionError("numbers do not end")
