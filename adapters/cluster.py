"""TF_CONFIG, TensorFlow's description of a cluster, read without TensorFlow.

Format: https://www.tensorflow.org/guide/distributed_training#TF_CONFIG
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import LauncherError
from .worker import Worker

TF_CONFIG_EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'


@dataclass(frozen=True)
class Cluster:
    """The workers' addresses in rank order (a chief first), and which of them this process is."""

    worker: Worker
    addresses: tuple[tuple[str, int], ...]


def read_tf_config(environ: Mapping[str, str]) -> Cluster | None:
    """Return the cluster that TF_CONFIG describes; `None` where it is unset, empty or describes none.

    Raises:
        LauncherError: it is not JSON, lacks a part, has an address that is none or stands twice, or names a task that
            its cluster does not have.
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
        raise LauncherError(
            f"TF_CONFIG has tasks of type {', '.join(foreign)}; synchronous training takes workers only"
        )
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
    # Some tools write the index as a text; a bool or a fraction would pass for a number that nobody meant.
    if type(index) is int or (isinstance(index, str) and index.isascii() and index.isdecimal()):
        with contextlib.suppress(ValueError):
            return tasks.index((kind, int(index)))
    known = ", ".join(f"{kind} {index}" for kind, index in tasks)
    raise LauncherError(f"TF_CONFIG says this is {kind} {index}, but its cluster has only: {known}")


def _address(text: Any) -> tuple[str, int]:
    host, _, port = str(text).rpartition(":")
    # An IPv6 address stands in brackets, as in URLs; a scheme (grpc://) is TensorFlow's to add.
    if not re.fullmatch(r"\[[^\s/\]]+\]|[^\s/:\[\]]+", host) or not re.fullmatch(r"[0-9]{1,5}", port):
        raise LauncherError(f"TF_CONFIG has the address {text!r}, which is not host:port")
    if not 1 <= int(port) <= 65535:
        raise LauncherError(f"TF_CONFIG has the address {text!r}, whose port is not one of 1 to 65535")
    return host, int(port)
