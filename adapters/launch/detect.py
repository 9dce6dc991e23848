"""Read who this process is from the environment that its launcher left.

Launchers agree on nothing but the idea, so each is a row of variable names. Those that number the processes themselves
must agree where several speak; a scheduler around them (Slurm) is heard only where no other does, because `srun` often
starts one torchrun or horovodrun per machine.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar

from ..errors import LauncherError
from ..worker import Worker
from . import deepspeed, environment, horovodrun, openmpi, torchrun
from .slurm import read_slurm
from .tf_config import read_tf_config
from .variables import Launch, Variables, quote, read

_told: ContextVar[Launch | None] = ContextVar("_told", default=None)


@contextlib.contextmanager
def launched_as(launch: Launch) -> Iterator[None]:
    """Have strategies that are created inside take `launch` for what their launcher says.

    For a framework that starts workers itself, and knows who they are without these variables.
    """
    token = _told.set(launch)
    try:
        yield
    finally:
        _told.reset(token)


def detect_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """Return what the launcher says of this process; without any launcher, the one worker of a job of its own.

    Inside `launched_as` it is what was told there, unless `environ` is given.

    Raises:
        LauncherError: variables are missing, are not numbers, or contradict each other; the message names them.
    """
    told = _told.get()
    if environ is None and told is not None:
        return told
    environ = os.environ if environ is None else environ
    found: list[tuple[Launch, str]] = []
    for variables in (horovodrun.VARIABLES, openmpi.VARIABLES, _torch_style(environ)):
        launch = read(variables, environ)
        if launch is not None:
            found.append((launch, quote(environ, variables.rank, variables.world_size)))
    cluster = read_tf_config(environ)
    if cluster is not None:
        said = f"TF_CONFIG (task {cluster.worker.rank} of {cluster.worker.world_size})"
        found.append((Launch("tf_config", cluster.worker, cluster.addresses[0]), said))
    if not found:
        return read_slurm(environ) or Launch("none", Worker())
    first, first_said = found[0]
    for other, said in found[1:]:
        ours, theirs = first.worker, other.worker
        if (ours.rank, ours.world_size) != (theirs.rank, theirs.world_size):
            raise LauncherError(
                f"the environment contradicts itself: {first_said} against {said}. "
                "Start the script with one launcher, and unset what another one left behind."
            )
    return first


def _torch_style(environ: Mapping[str, str]) -> Variables:
    """RANK and WORLD_SIZE are shared by three launchers; what they set beside them tells which it was."""
    if torchrun.MARK in environ:
        return torchrun.VARIABLES
    return deepspeed.VARIABLES if deepspeed.MARK in environ else environment.VARIABLES
