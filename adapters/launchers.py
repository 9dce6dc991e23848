"""Read who this process is from the environment that its launcher left.

Launchers agree on nothing but the idea, so each is a row of variable names. Those that number the processes themselves
must agree where several speak; a scheduler around them (Slurm) is heard only where no other does, because `srun` often
starts one torchrun or horovodrun per machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from .cluster import read_tf_config
from .errors import LauncherError
from .worker import Worker


@dataclass(frozen=True)
class Launch:
    """What a launcher said: its name, this worker, and where rank 0 may be met, if it said so."""

    launcher: str
    worker: Worker
    address: tuple[str, int] | None = None


@dataclass(frozen=True)
class _Variables:
    """The names under which one launcher tells a process who it is; `None` where it does not tell."""

    launcher: str
    rank: str
    world_size: str
    local_rank: str | None
    local_world_size: str | None
    node_rank: str | None


_HOROVODRUN = _Variables(
    "horovodrun",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "HOROVOD_LOCAL_RANK",
    "HOROVOD_LOCAL_SIZE",
    "HOROVOD_CROSS_RANK",
)
_OPEN_MPI = _Variables(
    "openmpi",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    None,
)
_TORCHRUN = _Variables("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
_DEEPSPEED = _Variables("deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK")
_ENVIRONMENT = _Variables("environment", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK")
_SLURM = _Variables("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None, "SLURM_NODEID")


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
    for variables in (_HOROVODRUN, _OPEN_MPI, _torch_style(environ)):
        launch = _read(variables, environ)
        if launch is not None:
            found.append((launch, _quote(environ, variables.rank, variables.world_size)))
    cluster = read_tf_config(environ)
    if cluster is not None:
        said = f"TF_CONFIG (task {cluster.worker.rank} of {cluster.worker.world_size})"
        found.append((Launch("tf_config", cluster.worker, cluster.addresses[0]), said))
    if not found:
        return _read_slurm(environ) or Launch("none", Worker())
    first, first_said = found[0]
    for other, said in found[1:]:
        ours, theirs = first.worker, other.worker
        if (ours.rank, ours.world_size) != (theirs.rank, theirs.world_size):
            raise LauncherError(
                f"the environment contradicts itself: {first_said} against {said}. "
                "Start the script with one launcher, and unset what another one left behind."
            )
    return first


def drop_local_rank_argument() -> None:
    """Take back the `--local_rank=N` that the deepspeed launcher puts before a script's own arguments.

    The same number is in the environment, where `detect_launch` reads it. A script that speaks of local_rank itself,
    as those do that declare the argument, keeps it.
    """
    rank = os.environ.get("LOCAL_RANK")
    if "CROSS_RANK" not in os.environ or sys.argv[1:2] != [f"--local_rank={rank}"]:
        return
    script = getattr(sys.modules.get("__main__"), "__file__", None) or sys.argv[0]
    with contextlib.suppress(OSError):
        if not re.search(r"local[_-]rank", Path(script).read_text(errors="replace")):
            del sys.argv[1]


def _torch_style(environ: Mapping[str, str]) -> _Variables:
    """RANK and WORLD_SIZE are shared by three launchers; what they set beside them tells which it was."""
    if "TORCHELASTIC_RUN_ID" in environ:
        return _TORCHRUN
    return _DEEPSPEED if "CROSS_RANK" in environ else _ENVIRONMENT


def _read(variables: _Variables, environ: Mapping[str, str]) -> Launch | None:
    rank = _number(environ, variables.rank)
    world_size = _number(environ, variables.world_size)
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        present, missing = (
            (variables.rank, variables.world_size) if world_size is None else (variables.world_size, variables.rank)
        )
        raise LauncherError(
            f"{_quote(environ, present)} is set but {missing} is not: set both, or neither. "
            "A launcher (torchrun, horovodrun, deepspeed) sets them for you."
        )
    local_rank = _number(environ, variables.local_rank)
    local_world_size = _number(environ, variables.local_world_size)
    node_rank = _number(environ, variables.node_rank)
    if local_rank is None:
        # Schedulers that start one process in each container (Kubernetes) number the processes only.
        local_rank, local_world_size = 0, 1
    if local_world_size is None:
        local_world_size = world_size
    if node_rank is None:
        node_rank = rank // max(1, local_world_size)
    worker = _checked_worker(variables, environ, rank, world_size, local_rank, local_world_size, node_rank)
    return Launch(variables.launcher, worker, _master(environ))


def _read_slurm(environ: Mapping[str, str]) -> Launch | None:
    tasks = _number(environ, "SLURM_NTASKS")
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        if tasks is not None and tasks > 1:
            raise LauncherError(
                f"{_quote(environ, 'SLURM_NTASKS')}, but this process was not started by srun: start the script with "
                "`srun python ...`, or unset SLURM_NTASKS to run one worker."
            )
        return None
    rank, world_size = _number(environ, "SLURM_PROCID"), _number(environ, "SLURM_STEP_NUM_TASKS")
    node_rank = _number(environ, "SLURM_NODEID") or 0
    local_rank = _number(environ, "SLURM_LOCALID") or 0
    assert rank is not None and world_size is not None
    per_node = slurm_tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", ""))
    local_world_size = per_node[node_rank] if node_rank < len(per_node) else world_size
    worker = _checked_worker(_SLURM, environ, rank, world_size, local_rank, local_world_size, node_rank)
    return Launch("slurm", worker, _master(environ) or _slurm_master(environ))


def _checked_worker(variables: _Variables, environ: Mapping[str, str], *numbers: int) -> Worker:
    try:
        return Worker(*numbers)
    except LauncherError as error:
        names = (variables.rank, variables.world_size, variables.local_rank, variables.local_world_size)
        said = _quote(environ, *(name for name in names if name is not None and name in environ))
        raise LauncherError(f"{error}: {said}") from None


def _number(environ: Mapping[str, str], name: str | None) -> int | None:
    text = "" if name is None else environ.get(name, "").strip()
    if not text:
        return None
    try:
        return int(text)
    except ValueError:
        raise LauncherError(f"{name}={text!r} is not a whole number") from None


def _master(environ: Mapping[str, str]) -> tuple[str, int] | None:
    port = _number(environ, "MASTER_PORT")
    host = environ.get("MASTER_ADDR")
    return (host, port) if host and port is not None else None


def _slurm_master(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The first node of the step, and a port that all its tasks derive from the job and step alike."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        return None
    job, step = _number(environ, "SLURM_JOB_ID") or 0, _number(environ, "SLURM_STEP_ID") or 0
    return first_slurm_host(nodes), 20000 + (job * 31 + step) % 12000


def first_slurm_host(nodes: str) -> str:
    """Return the first host of a Slurm host list: `gpu[003-007,9],login1` gives `gpu003`."""
    match = re.match(r"(?:[^,\[\]]|\[\w[^\]]*\])+", nodes)
    if match is None:
        raise LauncherError(f"{nodes!r} is not a Slurm host list")
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", match.group())


def slurm_tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's `2(x3),1` into [2, 2, 2, 1]."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts


def _quote(environ: Mapping[str, str], *names: str) -> str:
    return ", ".join(f"{name}={environ.get(name, '')}" for name in names)
