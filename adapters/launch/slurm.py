"""Slurm: a task's rank, and where the step's tasks meet and listen, computed from its host list.

TensorFlow's own SlurmClusterResolver does not give these addresses: it sorts machines by name (n10 before n9, against
the order of ranks), and refuses machines without GPUs and host lists such as `rack[1-2]n[3-4]`.
"""

from __future__ import annotations

import itertools
import os
import re
import socket
from collections.abc import Mapping

from ..errors import LauncherError
from .variables import Launch, Variables, checked_worker, master, number, quote

VARIABLES = Variables("slurm", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", None, "SLURM_NODEID")

# Below the free ports that Linux gives out (from 32768), and apart from rank 0's port (`_slurm_master`).
_FIRST_PORT, _PORTS = 10000, 10000


def read_slurm(environ: Mapping[str, str]) -> Launch | None:
    """Return Slurm's description of this process; `None` if it is not a task of a step.

    Raises:
        LauncherError: variables are not numbers or contradict each other, or srun is missing before a script.
    """
    tasks = number(environ, "SLURM_NTASKS")
    if "SLURM_STEP_NUM_TASKS" not in environ or "SLURM_PROCID" not in environ:
        if tasks is not None and tasks > 1:
            raise LauncherError(
                f"{quote(environ, 'SLURM_NTASKS')}, but this process was not started by srun: start the script with "
                "`srun python ...`, or unset SLURM_NTASKS to run one worker."
            )
        return None
    rank, world_size = number(environ, "SLURM_PROCID"), number(environ, "SLURM_STEP_NUM_TASKS")
    node_rank = number(environ, "SLURM_NODEID") or 0
    local_rank = number(environ, "SLURM_LOCALID") or 0
    assert rank is not None and world_size is not None
    per_node = slurm_tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", ""))
    local_world_size = per_node[node_rank] if node_rank < len(per_node) else world_size
    worker = checked_worker(VARIABLES, environ, rank, world_size, local_rank, local_world_size, node_rank)
    return Launch("slurm", worker, master(environ) or _slurm_master(environ))


def _slurm_master(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The first node of the step, and a port that all its tasks derive from job and step."""
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    if not nodes:
        return None
    job, step = number(environ, "SLURM_JOB_ID") or 0, number(environ, "SLURM_STEP_ID") or 0
    return expand_hosts(nodes)[0], 20000 + (job * 31 + step) % 12000


def slurm_tasks_per_node(text: str) -> list[int]:
    """Expand Slurm's `2(x3),1` into [2, 2, 2, 1]."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts


def slurm_addresses(launch: Launch, environ: Mapping[str, str] | None = None) -> tuple[tuple[str, int], ...]:
    """Return host and port of every task of this step in rank order; tasks fill one machine after the other.

    Ports derive from job and step, so that jobs on one machine do not collide.

    Raises:
        LauncherError: the step's variables do not give each task's machine, or this task's port is in use.
    """
    environ = os.environ if environ is None else environ
    worker = launch.worker
    nodes, tasks = _step(environ, "SLURM_STEP_NODELIST"), _step(environ, "SLURM_STEP_TASKS_PER_NODE")
    hosts, per_node = expand_hosts(nodes), slurm_tasks_per_node(tasks)
    if len(hosts) != len(per_node) or sum(per_node) != worker.world_size:
        raise LauncherError(
            f"SLURM_STEP_NODELIST={nodes}, SLURM_STEP_TASKS_PER_NODE={tasks} and SLURM_STEP_NUM_TASKS="
            f"{worker.world_size} contradict each other: start the workers with srun, or set TF_CONFIG"
        )
    places = [(node, local) for node, count in enumerate(per_node) for local in range(count)]
    if places[worker.rank] != (worker.node_rank, worker.local_rank) or _is_spread(environ, per_node):
        raise LauncherError(
            f"Slurm put task {worker.rank} on node {worker.node_rank} as its task {worker.local_rank}, not in blocks; "
            "the other tasks' machines are unknown: use `srun --distribution=block`, or set TF_CONFIG"
        )
    first = _first_port(environ, max(per_node))
    addresses = tuple((hosts[node], first + local) for node, local in places)
    _check_free(addresses[worker.rank][1])
    return addresses


def expand_hosts(nodes: str) -> list[str]:
    """Expand a Slurm host list: `gpu[003-004,9],login1` gives gpu003, gpu004, gpu9 and login1, in this order.

    Raises:
        LauncherError: it is not one.
    """
    part = r"[^,\[\]\s]+|\[\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*\]"
    if not re.fullmatch(rf"(?:{part})+(?:,(?:{part})+)*", nodes):
        raise LauncherError(f"{nodes!r} is not a Slurm host list")
    hosts: list[str] = []
    for name in re.findall(rf"(?:{part})+", nodes):
        choices = [_numbers(piece[1:-1]) if piece.startswith("[") else [piece] for piece in re.findall(part, name)]
        hosts += ["".join(pieces) for pieces in itertools.product(*choices)]
    return hosts


def _numbers(ranges: str) -> list[str]:
    """`003-005,9` gives 003, 004, 005 and 9."""
    numbers: list[str] = []
    for piece in ranges.split(","):
        first, _, last = piece.partition("-")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last or first) + 1)]
    return numbers


def _step(environ: Mapping[str, str], name: str) -> str:
    text = environ.get(name, "").strip()
    if not text:
        raise LauncherError(f"{name} is not set, so Slurm's tasks cannot be found: start with srun, or set TF_CONFIG")
    return text


def _is_spread(environ: Mapping[str, str], per_node: list[int]) -> bool:
    """Whether tasks alternate between machines; the same on every task."""
    asked = environ.get("SLURM_DISTRIBUTION", "").lower()
    return len(per_node) > 1 and max(per_node) > 1 and asked.startswith(("cyclic", "plane", "arbitrary"))


def _first_port(environ: Mapping[str, str], tasks: int) -> int:
    """Give each step as many ports as its tasks need on one machine.

    The first 31 steps of a job share no port with each other, nor with those of the next job, unless numbers wrap.
    """
    numbers = []
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        text = environ.get(name, "0").strip()
        if not text.isdecimal():
            raise LauncherError(f"{name}={text!r} is not a whole number")
        numbers.append(int(text))
    job, step = numbers
    return _FIRST_PORT + (job * 31 + step) % (_PORTS // tasks) * tasks


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise LauncherError(
                f"TensorFlow's port {port}, which follows from SLURM_JOB_ID and SLURM_STEP_ID, cannot be used on "
                f"{socket.gethostname()}: {error.strerror}. Set TF_CONFIG to choose other ports."
            ) from None
