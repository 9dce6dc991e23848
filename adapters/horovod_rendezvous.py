"""Let Horovod join a job that another launcher started.

Horovod's Gloo controller meets at a small HTTP server that horovodrun keeps. Where another launcher started the
workers, rank 0 keeps that server, as Horovod's own integrations (Ray, Spark) do, and the workers tell each other where.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from .launchers import Launch

Share = Callable[[str | None], str]
"""Given the address by rank 0 and `None` by the others, returns it on every worker, once all have it."""


class Rendezvous(Protocol):
    """A running server that workers meet at."""

    def start(self) -> int: ...

    def stop(self) -> None: ...


def describe_job_to_horovod(launch: Launch, share: Share) -> Rendezvous | None:
    """Set the variables that `hvd.init()` reads; return the rendezvous server where this worker keeps it.

    Nothing is to be done where horovodrun or MPI started the job, or where there is one worker.
    """
    worker = launch.worker
    if launch.launcher in ("horovodrun", "openmpi") or worker.world_size == 1:
        return None
    from horovod.runner.http.http_server import RendezvousServer

    server: Rendezvous | None = None
    own: str | None = None
    if worker.is_main:
        server = RendezvousServer()
        own = f"{_own_address(launch)}:{server.start()}"
    host, _, port = share(own).rpartition(":")
    os.environ.update(
        HOROVOD_RANK=str(worker.rank),
        HOROVOD_SIZE=str(worker.world_size),
        HOROVOD_LOCAL_RANK=str(worker.local_rank),
        HOROVOD_LOCAL_SIZE=str(worker.local_world_size),
        HOROVOD_CROSS_RANK=str(worker.node_rank),
        HOROVOD_CROSS_SIZE=str(-(-worker.world_size // worker.local_world_size)),
        HOROVOD_HOSTNAME=f"node{worker.node_rank}",
        HOROVOD_GLOO_RENDEZVOUS_ADDR=host,
        HOROVOD_GLOO_RENDEZVOUS_PORT=port,
        HOROVOD_CONTROLLER="gloo",
        HOROVOD_CPU_OPERATIONS="gloo",
    )
    return server


def _own_address(launch: Launch) -> str:
    if launch.worker.local_world_size == launch.worker.world_size or launch.address is None:
        return "127.0.0.1"
    return launch.address[0]
