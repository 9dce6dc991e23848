"""A launcher's description of a process, and the variables that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import LauncherError
from ..worker import Worker


@dataclass(frozen=True)
class Launch:
    """A launcher's description of this process: its name, this worker, and rank 0's address, if given."""

    launcher: str
    worker: Worker
    address: tuple[str, int] | None = None


@dataclass(frozen=True)
class Variables:
    """The variables in which one launcher describes a process; `None` where it has none."""

    launcher: str
    rank: str
    world_size: str
    local_rank: str | None
    local_world_size: str | None
    node_rank: str | None


def read(variables: Variables, environ: Mapping[str, str]) -> Launch | None:
    """Return the launch that these variables describe; `None` if none of them is set.

    Raises:
        LauncherError: some are missing, are not numbers, or contradict each other; the message names them.
    """
    rank = number(environ, variables.rank)
    world_size = number(environ, variables.world_size)
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        present, missing = (
            (variables.rank, variables.world_size) if world_size is None else (variables.world_size, variables.rank)
        )
        raise LauncherError(
            f"{quote(environ, present)} is set but {missing} is not: set both, or neither. "
            "A launcher (torchrun, horovodrun, deepspeed) sets them for you."
        )
    local_rank = number(environ, variables.local_rank)
    local_world_size = number(environ, variables.local_world_size)
    node_rank = number(environ, variables.node_rank)
    if local_rank is None:
        # Schedulers that start one process in each container (Kubernetes) number processes only, not machines.
        local_rank, local_world_size = 0, 1
    if local_world_size is None:
        local_world_size = world_size
    if node_rank is None:
        node_rank = rank // max(1, local_world_size)
    worker = checked_worker(variables, environ, rank, world_size, local_rank, local_world_size, node_rank)
    return Launch(variables.launcher, worker, master(environ))


def checked_worker(variables: Variables, environ: Mapping[str, str], *numbers: int) -> Worker:
    """Return the worker of these numbers, or raise `LauncherError` that quotes their variables."""
    try:
        return Worker(*numbers)
    except LauncherError as error:
        names = (variables.rank, variables.world_size, variables.local_rank, variables.local_world_size)
        said = quote(environ, *(name for name in names if name is not None and name in environ))
        raise LauncherError(f"{error}: {said}") from None


def number(environ: Mapping[str, str], name: str | None) -> int | None:
    """Return a variable's number; `None` if it is not set."""
    text = "" if name is None else environ.get(name, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise LauncherError(f"{name}={text!r} is not a whole number") from None


def master(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """Return the host and port of MASTER_ADDR and MASTER_PORT; `None` unless both are set."""
    port = number(environ, "MASTER_PORT")
    host = environ.get("MASTER_ADDR")
    return (host, port) if host and port is not None else None


def quote(environ: Mapping[str, str], *names: str) -> str:
    """Write variables as a shell would set them."""
    return ", ".join(f"{name}={environ.get(name, '')}" for name in names)
