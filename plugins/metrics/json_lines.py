"""The sink that every run has: files with a record in each line."""

from __future__ import annotations

import contextlib
import errno
from collections import deque
from pathlib import Path
from typing import IO

from .folder import RunFolder
from .records import Event, Record, Workers, to_line
from .sinks import RunInfo, Sink

_MOST_UNWRITTEN = 100_000  # lines that wait for a disk that is full


class JsonLines(Sink):
    """Writes each record to the run's folder at once, so that it outlives this process."""

    def __init__(self) -> None:
        self._unwritten: deque[tuple[Path, bytes]] = deque(maxlen=_MOST_UNWRITTEN)
        self._files: dict[Path, IO[bytes]] = {}

    def open(self, run: RunInfo) -> None:
        self._folder = RunFolder(run.folder)

    def write(self, record: Record) -> None:
        of_all = isinstance(record, (Workers, Event)) and record.rank == 0
        path = self._folder.workers_file if of_all else self._folder.worker_file(record.rank)
        self._unwritten.append((path, to_line(record).encode() + b"\n"))
        self._catch_up()

    def close(self) -> None:
        try:
            self._catch_up()
        finally:
            for path in [*self._files]:
                self._close(path)

    def _catch_up(self) -> None:
        while self._unwritten:
            path, line = self._unwritten[0]
            try:
                self._append(path, line)
            except OSError:
                self._close(path)
                raise
            self._unwritten.popleft()

    def _append(self, path: Path, line: bytes) -> None:
        if path not in self._files:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = file = open(path, "ab+", buffering=0)  # noqa: SIM115
            if file.seek(0, 2):
                file.seek(-1, 2)
                if file.read(1) != b"\n":  # a line that a crash or a full disk has torn
                    line = b"\n" + line
        if self._files[path].write(line) != len(line):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def _close(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            if path in self._files:
                self._files.pop(path).close()
