"""TensorFlow's cluster, derived from any launcher.

TensorFlow takes its cluster only from TF_CONFIG: the addresses at which all workers listen. If it is not set, each
worker finds a free port, and the workers exchange addresses through their launcher's key-value store. Slurm has no
store, but lists the machines, so that addresses can be computed.

Neither TensorFlow nor torch is imported here, except torch for the launchers that come with it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Protocol

from ..errors import LauncherError
from ..launch.addresses import own_host
from ..launch.horovodrun import find_horovodrun_store
from ..launch.slurm import slurm_addresses
from ..launch.tf_config import TF_CONFIG_EXAMPLE, read_tf_config, write_tf_config
from ..launch.variables import Launch
from ..worker import Worker

_OF_TORCH = ("torchrun", "deepspeed", "environment")
_GRACE = 3.0  # seconds that rank 0, which may host the store, waits for the others to read
_SET_TF_CONFIG = f"set TF_CONFIG for each worker, for example {TF_CONFIG_EXAMPLE}"


class _Store(Protocol):
    """Texts by key, shared by all workers; `wait` returns `None` after `timeout` seconds."""

    def put(self, key: str, text: str) -> None: ...

    def wait(self, key: str, timeout: float) -> str | None: ...


def cluster_addresses(launch: Launch, timeout: float) -> tuple[tuple[str, int], ...]:
    """Return host and port of every worker in rank order, the same on all of them; each listens at its own.

    If TF_CONFIG is set, its addresses are used under any launcher. A single worker without TF_CONFIG needs no cluster
    and gets none. All workers call it, and none returns before all have, except under TF_CONFIG and Slurm, where no
    worker needs to wait.

    Raises:
        LauncherError: a worker did not report within `timeout` seconds (the message names it), or the launcher
            has no store to exchange addresses through.
    """
    given = read_tf_config(os.environ)
    if given is not None:
        return given.addresses
    worker = launch.worker
    if worker.world_size == 1:
        return ()
    if launch.launcher == "slurm":
        return slurm_addresses(launch)
    with socket.socket() as own:
        # Held until all have exchanged theirs, so that no two workers of a machine find the same port.
        own.bind(("", 0))
        port = int(own.getsockname()[1])
        store, host = _meet(launch, timeout)
        return _exchange(store, worker, f"{host}:{port}", timeout)


def tf_config(launch: Launch, addresses: tuple[tuple[str, int], ...]) -> str:
    """Return the TF_CONFIG of this worker in a cluster of these addresses, as JSON."""
    return write_tf_config([f"{host}:{port}" for host, port in addresses], launch.worker.rank)


def _meet(launch: Launch, timeout: float) -> tuple[_Store, str]:
    """Return the launcher's store, and the host at which the others reach this worker."""
    worker = launch.worker
    if launch.launcher == "horovodrun":
        store = find_horovodrun_store()
        if store is None:
            raise LauncherError(
                "HOROVOD_RANK is set, but not HOROVOD_GLOO_RENDEZVOUS_ADDR and _PORT, where workers exchange "
                f"TensorFlow's addresses: start the script with horovodrun, or {_SET_TF_CONFIG}"
            )
        return store, own_host(launch)
    if launch.launcher not in _OF_TORCH:
        raise LauncherError(
            f"{launch.launcher} started {worker.world_size} workers, but has no store in which they could exchange "
            f"TensorFlow's addresses: start them with `farandole run` or horovodrun, or {_SET_TF_CONFIG}"
        )
    try:
        from .torch_store import TorchStore
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "torch":
            raise
        raise LauncherError(
            f"{worker.world_size} workers can exchange TensorFlow's addresses at MASTER_ADDR only with torch, which is "
            f"not installed: install it, or {_SET_TF_CONFIG}"
        ) from None
    if launch.address is None:
        raise LauncherError(
            f"{launch.launcher} started {worker.world_size} workers but gives them no address to meet at: set "
            f"MASTER_ADDR (rank 0's host) and MASTER_PORT (a free port there) for all of them, or {_SET_TF_CONFIG}"
        )
    return TorchStore(launch, timeout), own_host(launch)


def _exchange(store: _Store, worker: Worker, own: str, timeout: float) -> tuple[tuple[str, int], ...]:
    """Let rank 0 gather all addresses and pass them on: few requests, and the same result on all workers."""
    deadline = time.monotonic() + timeout

    def wait(key: str, grace: float = 0.0) -> str | None:
        return store.wait(f"tf_cluster_{key}", max(0.0, deadline + grace - time.monotonic()))

    everyone = range(worker.world_size)
    store.put(f"tf_cluster_address_{worker.rank}", own)
    known: list[str | None]
    if worker.is_main:
        known = [wait(f"address_{rank}") for rank in everyone]
        store.put("tf_cluster_all", json.dumps(known))
        unread = [rank for rank in everyone[1:] if known[rank] is not None and wait(f"read_{rank}", _GRACE) is None]
    else:
        text = wait("all", _GRACE / 2)
        store.put(f"tf_cluster_read_{worker.rank}", "")
        known = [wait(f"address_{rank}") for rank in everyone] if text is None else json.loads(text)
        unread = [0] if text is None else []
    missing = [rank for rank in everyone if known[rank] is None]
    if missing:
        raise LauncherError(
            f"{_ranks(missing)} of {worker.world_size} did not send TensorFlow's address within {timeout:.0f} s: look "
            "into their output for an error, or for a strategy that was never entered"
        )
    if unread:
        raise LauncherError(
            f"{_ranks(unread)} of {worker.world_size} ended while TensorFlow's addresses were passed on: "
            "look into their output for an error"
        )
    hosts_and_ports = [text.rpartition(":") for text in known if text is not None]
    return tuple((host, int(port)) for host, _, port in hosts_and_ports)


def _ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
