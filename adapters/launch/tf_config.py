"""TF_CONFIG, TensorFlow's description of a cluster, read and written without TensorFlow.

Format: https://www.tensorflow.org/guide/distributed_training#TF_CONFIG
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import LauncherError, OptionError
from ..worker import Worker
from .start import STRATEGY_VARIABLE, Command, Job

START_DEADLINE_VARIABLE = "FARANDOLE_START_DEADLINE"  # seconds, read by the strategy
TF_CONFIG_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'

_FIRST_PORT = 2222  # of TensorFlow's own examples
_LAST_PORT = 65535


@dataclass(frozen=True)
class Cluster:
    """The workers' addresses in rank order (a chief first), and this process's worker."""

    worker: Worker
    addresses: tuple[tuple[str, int], ...]


def read_tf_config(environ: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that TF_CONFIG describes; `None` if it is unset, empty or describes none.

    Raises:
        LauncherError: it is not JSON, is incomplete, has an invalid or a duplicate address, or names a task that its
            cluster does not have.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise LauncherError(f"TF_CONFIG is not JSON ({error}). It looks like {TF_CONFIG_EXAMPLE}") from None
    if not isinstance(config, dict):
        raise LauncherError(f"TF_CONFIG is not a JSON object. It looks like {TF_CONFIG_EXAMPLE}")
    cluster = config.get("cluster")
    if cluster is None or cluster == {}:
        return None
    if not isinstance(cluster, dict) or not all(isinstance(hosts, list) for hosts in cluster.values()):
        raise LauncherError(
            f"TF_CONFIG's cluster does not map task types to lists of addresses. Expected {TF_CONFIG_EXAMPLE}"
        )
    foreign = sorted(set(cluster) - {"chief", "worker"})
    if foreign:
        raise LauncherError(f"TF_CONFIG has tasks of type {', '.join(foreign)}; synchronous training has only workers")
    tasks = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, [])))]
    if not tasks:
        raise LauncherError(f"TF_CONFIG's cluster has no worker. Expected {TF_CONFIG_EXAMPLE}")
    if len(cluster.get("chief", [])) > 1:
        raise LauncherError(f"TF_CONFIG has {len(cluster['chief'])} chiefs; a cluster has one at most")
    rank = _rank(config.get("task"), tasks)
    addresses = tuple(_address(cluster[kind][index]) for kind, index in tasks)
    for task, address in zip(tasks, addresses, strict=True):
        first = tasks[addresses.index(address)]
        if first != task:
            raise LauncherError(
                "TF_CONFIG gives the address {}:{} to {} {} and to {} {}".format(*address, *first, *task)
            )
    hosts = [host for host, _ in addresses]
    nodes = list(dict.fromkeys(hosts))
    worker = Worker(
        rank,
        len(tasks),
        local_rank=hosts[:rank].count(hosts[rank]),
        local_world_size=hosts.count(hosts[rank]),
        node_rank=nodes.index(hosts[rank]),
    )
    return Cluster(worker, addresses)


def _rank(task: Any, tasks: list[tuple[str, int]]) -> int:
    if not isinstance(task, dict) or "type" not in task or "index" not in task:
        raise LauncherError(f"TF_CONFIG names no task with a type and an index. Expected {TF_CONFIG_EXAMPLE}")
    kind, index = task["type"], task["index"]
    # Some tools write the index as text. A bool or a fraction is an error, although Python takes it for a number.
    if type(index) is int or (isinstance(index, str) and index.isascii() and index.isdecimal()):
        with contextlib.suppress(ValueError):
            return tasks.index((kind, int(index)))
    known = ", ".join(f"{kind} {index}" for kind, index in tasks)
    raise LauncherError(f"TF_CONFIG says this is {kind} {index}, but its cluster has only: {known}")


def _address(text: Any) -> tuple[str, int]:
    host, _, port = str(text).rpartition(":")
    # An IPv6 address stands in brackets, as in URLs; TensorFlow itself adds a scheme (grpc://).
    if not re.fullmatch(r"\[[^\s/\]]+\]|[^\s/:\[\]]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise LauncherError(f"TF_CONFIG has the address {text!r}, which is not host:port")
    if not 1 <= int(port) <= 65535:
        raise LauncherError(f"TF_CONFIG has the address {text!r}, whose port is not one of 1 to 65535")
    return host, int(port)


def write_tf_config(addresses: Sequence[str], index: int) -> str:
    """Return the TF_CONFIG of one worker of a cluster, as JSON; addresses are `host:port`."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables that start a job's workers."""
    if job.remote:
        raise OptionError(
            "TensorFlow has no launcher for several machines. Run each of these lines on the host named before it:\n"
            + "\n".join(f"  {line}" for line in _lines(job))
        )
    # -P: do not import from the current folder, which may hold a folder named like a package.
    argv = [job.python, "-P", "-m", job.local_workers, "-n", str(job.workers)]
    if job.port is not None:
        argv += ["--port", str(job.port)]
    if job.start_deadline is not None:
        argv += ["--start-deadline", f"{job.start_deadline:g}"]
    return [*argv, *job.program], {}


def _lines(job: Job) -> list[str]:
    """One line for each worker, with its index in TF_CONFIG."""
    first = job.port or _FIRST_PORT
    names, addresses = [], []
    for host in job.hosts:
        names += [host.name] * host.slots
        addresses += [f"{host.name}:{port}" for port in consecutive_ports(host.slots, first)]
    variables = {STRATEGY_VARIABLE: job.strategy}
    if job.start_deadline is not None:
        variables[START_DEADLINE_VARIABLE] = f"{job.start_deadline:g}"
    commands = [
        Command(("python", *job.program), {**variables, "TF_CONFIG": write_tf_config(addresses, index)})
        for index in range(len(names))
    ]
    return [f"{name}: {command}" for name, command in zip(names, commands, strict=True)]


def consecutive_ports(number: int, first: int) -> list[int]:
    """Return `number` ports from `first` upward, or raise `OptionError` if they pass the last one."""
    if first + number - 1 > _LAST_PORT:
        raise OptionError(
            f"--port {first}: {number} ports from there would pass the last one, {_LAST_PORT}: choose a lower one"
        )
    return list(range(first, first + number))
