"""TF_CONFIG, TensorFlow's description of a cluster, read without TensorFlow.

Format: https://www.tensorflow.org/guide/distributed_training#TF_CONFIG
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import LauncherError
from .worker import Worker

_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    """The workers' addresses in rank order (a chief first), and which of them this process is."""

    worker: Worker
    addresses: tuple[tuple[str, int], ...]


def read_tf_config(environ: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that TF_CONFIG describes; `None` where it is unset, empty or describes none.

    Raises:
        LauncherError: it is not JSON, lacks a part, or names a task that its cluster does not have.
    """
    text = environ.get("TF_CONFIG", "").strip()
    if not text:
        return None
    try:
        config = json.loads(text)
    except json.JSONDecodeError as error:
        raise LauncherError(f"TF_CONFIG is not JSON ({error}). It looks like {_EXAMPLE}") from None
    if not isinstance(config, dict):
        raise LauncherError(f"TF_CONFIG is not a JSON object. It looks like {_EXAMPLE}")
    cluster = config.get("cluster")
    if not cluster:
        return None
    if not isinstance(cluster, dict) or not all(isinstance(hosts, list) for hosts in cluster.values()):
        raise LauncherError(f"TF_CONFIG's cluster does not map task types to lists of addresses. Expected {_EXAMPLE}")
    foreign = sorted(set(cluster) - {"chief", "worker"})
    if foreign:
        raise LauncherError(
            f"TF_CONFIG has tasks of type {', '.join(foreign)}; synchronous training takes workers only"
        )
    tasks = [(kind, index) for kind in ("chief", "worker") for index in range(len(cluster.get(kind, [])))]
    rank = _rank(config.get("task"), tasks)
    addresses = tuple(_address(cluster[kind][index]) for kind, index in tasks)
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
        raise LauncherError(f"TF_CONFIG names no task with a type and an index. Expected {_EXAMPLE}")
    try:
        return tasks.index((task["type"], int(task["index"])))
    except (TypeError, ValueError):
        known = ", ".join(f"{kind} {index}" for kind, index in tasks)
        raise LauncherError(
            f"TF_CONFIG says this is {task['type']} {task['index']}, but its cluster has only: {known}"
        ) from None


def _address(text: Any) -> tuple[str, int]:
    host, _, port = str(text).rpartition(":")
    if not host or not port.isdigit():
        raise LauncherError(f"TF_CONFIG has the address {text!r}, which is not host:port")
    return host, int(port)
