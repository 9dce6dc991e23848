"""Let Horovod join a job, whoever started it, as often as strategies are entered.

Horovod's Gloo controller meets at a small HTTP server that horovodrun keeps. That server still holds the addresses of
the first round when Horovod is initialized again, and other launchers keep none. So rank 0 keeps one for each entry, as
Horovod's own integrations (Ray, Spark) do, and the workers tell each other where.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from .. import entry
from ..errors import LauncherError
from ..launch.addresses import host_towards
from ..launch.horovodrun import HorovodrunStore, find_horovodrun_store
from ..launch.variables import Launch
from ..worker import Worker
from .compat import rendezvous_server
from .mpi import keep_mpi

MEETING = 1800.0  # seconds that workers wait for each other

Share = Callable[[str | None], str]
"""Given the address by rank 0 and `None` by the others, returns it on every worker, once all have called."""


@contextlib.contextmanager
def described_job(launch: Launch, share: Share, gloo: bool) -> Iterator[None]:
    """Have `hvd.init()` find the job: inside, its variables are set and its rendezvous server runs.

    All workers must be initialized before any of them leaves.

    Args:
        share: how to tell the others an address, where neither horovodrun nor MPI started the job.
        gloo: whether this Horovod was built with Gloo.
    """
    worker = launch.worker
    if launch.launcher == "openmpi":
        keep_mpi()  # it knows the job by itself
        yield
        return
    # Elastic horovodrun gives each round a new description.
    if os.environ.get("HOROVOD_ELASTIC") == "1" or not gloo:
        yield
        return
    # Said to a single worker too: a Horovod that was built with MPI would take that.
    chosen = {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    described = {} if launch.launcher == "horovodrun" else chosen
    if worker.world_size == 1:
        with entry.environment(**described):
            yield
        return
    store = find_horovodrun_store() if launch.launcher == "horovodrun" else None
    server = rendezvous_server() if worker.is_main else None
    try:
        own = f"{_own_address(launch, store)}:{server.start()}" if server is not None else None
        told = share(own) if store is None else _share_by_horovodrun(store, worker, own)
        host, _, port = told.rpartition(":")
        described |= {"HOROVOD_GLOO_RENDEZVOUS_ADDR": host, "HOROVOD_GLOO_RENDEZVOUS_PORT": port}
        if launch.launcher != "horovodrun":
            described |= {
                "HOROVOD_RANK": str(worker.rank),
                "HOROVOD_SIZE": str(worker.world_size),
                "HOROVOD_LOCAL_RANK": str(worker.local_rank),
                "HOROVOD_LOCAL_SIZE": str(worker.local_world_size),
                "HOROVOD_CROSS_RANK": str(worker.node_rank),
                "HOROVOD_CROSS_SIZE": str(-(-worker.world_size // worker.local_world_size)),
                "HOROVOD_HOSTNAME": f"node{worker.node_rank}",
            }
        with entry.environment(**described):
            yield
    finally:
        if server is not None:
            server.stop()


def _own_address(launch: Launch, store: HorovodrunStore | None) -> str:
    if launch.worker.local_world_size == launch.worker.world_size:
        return "127.0.0.1"
    if store is not None:
        return host_towards(store.host, store.port)
    return "127.0.0.1" if launch.address is None else launch.address[0]


def _share_by_horovodrun(store: HorovodrunStore, worker: Worker, address: str | None) -> str:
    """Tell all workers rank 0's address once all are here: Horovod waits for 30 s only."""
    store.put(f"horovod_{worker.rank}", address or "here")
    said = [store.wait(f"horovod_{rank}", MEETING) for rank in range(worker.world_size)]
    if None in said:
        raise LauncherError(f"worker {said.index(None)} did not enter the strategy within {MEETING:.0f} s")
    return str(said[0])
