"""A job to start, and the command line that starts it."""

from __future__ import annotations

import os
import shlex
import shutil
import site
import socket
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import EngineUnavailableError
from .hosts import LOOPBACK, Host

STRATEGY_VARIABLE = "FARANDOLE_STRATEGY"  # the strategy that workers were started for


@dataclass(frozen=True)
class Command:
    """What to execute: the arguments, and the variables to add to the environment.

    is_worker: whether it is the one worker itself, without a launcher.
    held: sockets that keep the job's port from other programs; open for as long as this object.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    is_worker: bool = False
    held: tuple[socket.socket, ...] = ()

    def __str__(self) -> str:
        """The command as a line for a POSIX shell."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*added, shlex.join(self.argv)])


@dataclass(frozen=True)
class Job:
    """The workers of a strategy, for its launcher to start.

    fix: the command that installs the launcher.
    local_workers: the module that starts local workers with a TF_CONFIG each.
    """

    strategy: str
    on_tensorflow: bool
    fix: str
    workers: int
    program: tuple[str, ...]
    hosts: tuple[Host, ...]
    port: int | None
    start_deadline: float | None
    python: str
    local_workers: str

    @property
    def remote(self) -> bool:
        return any(host.name not in LOOPBACK for host in self.hosts)

    @property
    def workers_per_host(self) -> int:
        return max((host.slots for host in self.hosts), default=self.workers)


def find_launcher(name: str, python: str = sys.executable) -> str | None:
    """Return the path of a launcher: in the interpreter's environment, else the first on `PATH`."""
    return shutil.which(name, path=os.pathsep.join(map(str, script_folders(python)))) or shutil.which(name)


def script_folders(python: str = sys.executable) -> tuple[Path, ...]:
    """Return the folders of the programs in an interpreter's environment."""
    folders = [Path(python).parent]
    if python == sys.executable:
        folders.append(Path(sysconfig.get_path("scripts")))
        if site.ENABLE_USER_SITE:
            folders.append(Path(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))))
    return tuple(folders)


def program_of(name: str, job: Job) -> str:
    """Return the path of a job's launcher.

    Raises:
        EngineUnavailableError: there is none; the message says how to install it.
    """
    path = find_launcher(name, job.python)
    if path is None:
        raise EngineUnavailableError(
            f"strategy {job.strategy!r} is started by {name}, which is neither beside {job.python} nor on PATH. "
            f"Fix it with: {job.fix}"
        )
    return path
