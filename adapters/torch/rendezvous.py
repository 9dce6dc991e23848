"""Meet the other workers of a job, whichever launcher started them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from .. import entry
from ..errors import LauncherError
from ..launch.addresses import host_towards
from ..launch.horovodrun import find_horovodrun_store
from ..launch.variables import Launch
from ..strategy import Strategy
from .admission import announce, free_port_advice, take_rank, turn_workers_away, wait_for_all, where

_KEY = "torch_master"
# By the launcher's address. They live as long as the process: of rank 0's the others may still read.
_stores: dict[tuple[str, int] | None, TCPStore] = {}


def init_process_group(launch: Launch, backend: str, timeout: timedelta) -> None:
    """Initialize torch.distributed's default group for this launch.

    Raises:
        LauncherError: no address to meet at, or it cannot be used; the message names the variables to set.
    """
    worker = launch.worker
    with explained(launch):
        store = PrefixStore("group", open_store(launch, timeout))
        dist.init_process_group(backend, store=store, rank=worker.rank, world_size=worker.world_size, timeout=timeout)


@contextlib.contextmanager
def explained(launch: Launch) -> Iterator[None]:
    """Make a `LauncherError` of what torch says of a store that cannot be kept or reached."""
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        worker = launch.worker
        reason = str(error).splitlines()[0].rstrip(".")
        raise LauncherError(
            f"worker {worker.rank} of {worker.world_size} cannot meet the others at {where(launch)}: {reason}. "
            f"Look at rank 0 for an error; if another program uses the port, {free_port_advice(launch)}."
        ) from None


def adopt_process_group(launch: Launch) -> bool:
    """Return whether torch.distributed has a default group already, made by the program itself or by its framework.

    Raises:
        LauncherError: it is another job's.
    """
    if not dist.is_initialized():
        return False
    found, said = (dist.get_rank(), dist.get_world_size()), (launch.worker.rank, launch.worker.world_size)
    if found != said:
        raise LauncherError(
            f"torch.distributed is initialized already, as worker {found[0]} of {found[1]}, but {launch.launcher} says "
            f"worker {said[0]} of {said[1]}: call torch.distributed.destroy_process_group() before the strategy"
        )
    return True


def open_store(launch: Launch, timeout: timedelta, *, wait_for_workers: bool = True) -> Store:
    """Open the key-value store that all workers of this launch share, for the keys of the strategy that is open.

    Without `wait_for_workers`, rank 0 returns before the others have come, and can tell who has not.

    Raises:
        LauncherError: the launcher tells no address to meet at, it cannot be used, or it is another job's.
    """
    worker = launch.worker
    if worker.world_size == 1 and launch.address is None:
        return HashStore()
    if launch.launcher == "torchrun":
        # torchrun's agent keeps the store already; only torch knows by which variables to find it.
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        return _of_this_entry(store)
    if launch.address not in _stores:
        with explained(launch):
            _stores[launch.address] = _keep_or_reach(launch, timeout, wait_for_workers)
    _stores[launch.address].set_timeout(timeout)
    return _of_this_entry(_stores[launch.address])


def _of_this_entry(store: Store) -> Store:
    """A launcher's store outlives a strategy: the next one in this process must not find the addresses of the first."""
    return PrefixStore(f"farandole/{entry.generation()}", store)


def _keep_or_reach(launch: Launch, timeout: timedelta, wait_for_workers: bool) -> TCPStore:
    """Keep the store on rank 0, and connect the others to it."""
    worker = launch.worker
    if launch.address is not None:
        return _at_the_address(launch, launch.address, timeout, wait_for_workers)
    told = find_horovodrun_store()
    if told is None:
        raise LauncherError(
            f"{launch.launcher} started {worker.world_size} workers but tells them no address to meet at: "
            "set MASTER_ADDR (rank 0's host) and MASTER_PORT (a free port there) for all of them"
        )
    if worker.is_main:
        # It listens before it says where: a port that was only found free could be another job's by then.
        host = host_towards(told.host, told.port)
        store = _tcp_store(launch, (host, 0), timeout)
        told.put(_KEY, f"{host}:{store.port}")
        return store
    address = told.wait(_KEY, timeout.total_seconds())
    if address is None:
        raise LauncherError(f"rank 0 did not say within {timeout.total_seconds():.0f} s where to meet it")
    host, _, port = address.rpartition(":")
    return _tcp_store(launch, (host, int(port)), timeout)


def _at_the_address(launch: Launch, address: tuple[str, int], timeout: timedelta, wait_for_workers: bool) -> TCPStore:
    """Keep or reach the store where all workers were told to meet, as another job's may have been too."""
    if not launch.worker.is_main:
        store = _tcp_store(launch, address, timeout)
        take_rank(store, launch, timeout)
        return store
    try:
        store = _tcp_store(launch, address, timeout)
    except dist.DistNetworkError:
        turn_workers_away(launch, address)
        raise
    announce(store, launch)
    if wait_for_workers:
        wait_for_all(store, launch, timeout)
    return store


def _tcp_store(launch: Launch, address: tuple[str, int], timeout: timedelta) -> TCPStore:
    # Multi-tenant, as torch's own: a group that the user's code makes at this address is served by the same server.
    return TCPStore(
        *address, is_master=launch.worker.is_main, timeout=timeout, wait_for_workers=False, multi_tenant=True
    )


def open_side_store(strategy: Strategy) -> Store:
    """Open a key-value store of a joined strategy's own, which rank 0 keeps; all workers call it.

    Its port is a free one that the engine tells the others of, so that it needs nothing of the launcher.
    """
    store: Store | None = None
    address: tuple[str, int] | None = None
    if strategy.worker.is_main:
        host = _own_host(strategy.launch)
        served = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        store, address = served, (host, served.port)
    address = strategy.broadcast(address)
    assert address is not None
    return store or TCPStore(address[0], address[1], is_master=False)


def init_companion_group(strategy: Strategy, store: Store) -> None:
    """Initialize torch.distributed's default group, on Gloo, beside an engine that communicates by itself.

    Much that runs in a training loop asks torch.distributed whether there are other workers, torchmetrics for one, and
    takes a worker's own numbers for the whole where it finds none.
    """
    worker = strategy.worker
    # The CPU's tensors on Gloo and, where there is CUDA, its tensors on NCCL: a collective takes what it is given.
    backend = "cpu:gloo,cuda:nccl" if strategy.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=worker.rank, world_size=worker.world_size)


def _own_host(launch: Launch) -> str:
    """Return the address under which the other workers reach rank 0, which this is."""
    if launch.worker.local_world_size == launch.worker.world_size:
        return "127.0.0.1"
    if launch.address is not None:
        return launch.address[0]
    store = find_horovodrun_store()
    return socket.gethostname() if store is None else host_towards(store.host, store.port)
