"""Let Horovod join a job under any launcher, as often as strategies are entered.

Horovod's Gloo controller meets at a small HTTP server of horovodrun's. When Horovod is initialized again, that server
still has the addresses of the first time, and other launchers have no such server. So rank 0 runs one for each entry,
as Horovod's own integrations (Ray, Spark) do, and shares its address with the other workers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

from .. import entry
from ..errors import LauncherError
from ..launch.addresses import own_host
from ..launch.horovodrun import HorovodrunStore, find_horovodrun_store
from ..launch.variables import Launch
from ..worker import Worker
from .compat import rendezvous_server
from .mpi import keep_mpi

MEETING = 1800.0  # seconds that workers wait for each other

BroadcastAddress = Callable[[str | None], str]
"""All workers call it, rank 0 with the address and the others with `None`; returns the address on every worker."""


@contextlib.contextmanager
def described_job(launch: Launch, broadcast: BroadcastAddress, gloo: bool) -> Iterator[None]:
    """Have `hvd.init()` find the job: inside this context its variables are set and its rendezvous server runs.

    All workers must be initialized before any of them leaves the context.

    Args:
        broadcast: gives all workers rank 0's address, if neither horovodrun nor MPI started the job.
        gloo: whether this Horovod was built with Gloo.
    """
    worker = launch.worker
    if launch.launcher == "openmpi":
        keep_mpi()  # MPI describes the job itself
        yield
        return
    # Elastic horovodrun describes each round itself.
    if os.environ.get("HOROVOD_ELASTIC") == "1" or not gloo:
        yield
        return
    # Set for a single worker too: a Horovod built with MPI would use MPI.
    chosen = {"HOROVOD_CONTROLLER": "gloo", "HOROVOD_CPU_OPERATIONS": "gloo"}
    described = {} if launch.launcher == "horovodrun" else chosen
    if worker.world_size == 1:
        with entry.environment(**described):
            yield
        return
    store = find_horovodrun_store() if launch.launcher == "horovodrun" else None
    server = rendezvous_server() if worker.is_main else None
    try:
        own = f"{own_host(launch)}:{server.start()}" if server is not None else None
        address = broadcast(own) if store is None else _broadcast_by_horovodrun(store, worker, own)
        host, _, port = address.rpartition(":")
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


def _broadcast_by_horovodrun(store: HorovodrunStore, worker: Worker, address: str | None) -> str:
    """Give all workers rank 0's address once all are here: Horovod itself waits only 30 s."""
    store.put(f"horovod_{worker.rank}", address or "here")
    found = [store.wait(f"horovod_{rank}", MEETING) for rank in range(worker.world_size)]
    if None in found:
        raise LauncherError(f"worker {found.index(None)} did not enter the strategy within {MEETING:.0f} s")
    return str(found[0])
