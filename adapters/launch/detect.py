"""Read this process's rank from the environment that its launcher set.

Each launcher is a row of variable names. Launchers that number the processes themselves must agree. A scheduler around
them (Slurm) counts only where there is no other launcher, because `srun` often starts one torchrun or horovodrun per
machine.
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

_given: ContextVar[Launch | None] = ContextVar("_given", default=None)


@contextlib.contextmanager
def launched_as(launch: Launch) -> Iterator[None]:
    """Have strategies that are created inside take `launch` as their launcher's description.

    For a framework that starts workers itself, and knows their ranks without these variables.
    """
    token = _given.set(launch)
    try:
        yield
    finally:
        _given.reset(token)


def detect_launch(environ: Mapping[str, str] | None = None) -> Launch:
    """Return the launcher's description of this process; without a launcher, the only worker of a job.

    Inside `launched_as` it is the one given there, unless `environ` is given.

    Raises:
        LauncherError: variables are missing, are not numbers, or contradict each other; the message names them.
    """
    given = _given.get()
    if environ is None and given is not None:
        return given
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
    """Three launchers set RANK and WORLD_SIZE; other variables tell which it was."""
    if torchrun.MARK in environ:
        return torchrun.VARIABLES
    return deepspeed.VARIABLES if deepspeed.MARK in environ else environment.VARIABLES
