"""No launcher: RANK and WORLD_SIZE from a scheduler of containers or by hand, or one process of plain Python."""

from __future__ import annotations

from ..errors import OptionError
from .start import Job
from .variables import Variables

VARIABLES = Variables("environment", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """Return the arguments that start the one worker, and no variables."""
    name = job.strategy
    several = "tf_multiworker" if job.on_tensorflow else "ddp"
    if job.workers > 1:
        raise OptionError(f"strategy {name!r} is one process: leave out -n {job.workers}, or use --strategy {several}")
    if job.hosts or job.port is not None:
        given = "--hosts" if job.hosts else "--port"
        raise OptionError(f"strategy {name!r} is one process on this machine: leave out {given}")
    return [job.python, *job.program], {}
