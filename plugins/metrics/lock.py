"""One live job writes a run's folder: a file in it is locked, and names the process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

import psutil

_PATIENCE = 2.0  # seconds; a job that is started again may meet its last one, which is about to end


class Held(Exception):
    """Another live job holds the lock; the message says which process."""


class RunLock:
    """A lock on a file, until `release` or the end of this process.

    The system keeps it (flock). Where it still does so for the children of a process that was killed, the process id in
    the file decides. On a file system without locks it does too, but only for processes of one machine.

    Raises:
        Held: another process holds it, or this one by another `RunLock`.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._file: IO[str] | None = open(path, "a+")  # noqa: SIM115
        try:
            self._take(self._file)
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Let others have it; also called twice."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()
            self._file = None

    def _take(self, file: IO[str]) -> None:
        until = time.monotonic() + _PATIENCE
        locked = _lock(file)
        while locked is False and time.monotonic() < until:
            time.sleep(0.1)
            locked = _lock(file)
        pid, host = _holder(file)
        here = host == socket.gethostname()
        alive = here and pid is not None and psutil.pid_exists(pid)
        held = alive or not here if locked is False else alive and pid != os.getpid() if locked is None else False
        if held:
            raise Held(f"process {pid} on {host} writes it")
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()


def _lock(file: IO[str]) -> bool | None:
    """Lock a file; false if it is locked elsewhere, `None` if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _holder(file: IO[str]) -> tuple[int | None, str]:
    """Return the process and the host that the file names."""
    file.seek(0)
    pid, _, host = file.read().strip().partition(" ")
    return (int(pid), host) if pid.isdigit() else (None, host)
