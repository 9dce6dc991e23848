"""Meet the other workers of a job, under any launcher."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import HashStore, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from .. import entry
from ..errors import LauncherError
from ..launch.addresses import host_towards, own_host
from ..launch.horovodrun import find_horovodrun_store
from ..launch.variables import Launch
from ..strategy import Strategy
from .admission import announce, free_port_advice, take_rank, turn_workers_away, wait_for_all, where
from .default_group import init_default_group

_KEY = "torch_master"
# By the launcher's address. They live as long as the process: other workers may still read rank 0's.
_stores: dict[tuple[str, int] | None, TCPStore] = {}


def init_process_group(launch: Launch, backend: str, timeout: timedelta) -> None:
    """Initialize torch.distributed's default group for this launch.

    Raises:
        LauncherError: no address to meet at, or it cannot be used; the message names the variables to set.
    """
    with explained(launch):
        store = PrefixStore("group", open_store(launch, timeout))
        init_default_group(backend, store, launch.worker, timeout)


@contextlib.contextmanager
def explained(launch: Launch) -> Iterator[None]:
    """Turn torch's error about a store that cannot be hosted or reached into a `LauncherError`."""
    try:
        yield
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        worker = launch.worker
        reason = str(error).splitlines()[0].rstrip(".")
        raise LauncherError(
            f"worker {worker.rank} of {worker.world_size} cannot meet the others at {where(launch)}: {reason}. "
            f"Look into rank 0's output for an error; if another program uses the port, {free_port_advice(launch)}."
        ) from None


def adopt_process_group(launch: Launch) -> bool:
    """Return whether torch.distributed already has a default group, of the program itself or of its framework.

    Raises:
        LauncherError: it belongs to another job.
    """
    if not dist.is_initialized():
        return False
    found, expected = (dist.get_rank(), dist.get_world_size()), (launch.worker.rank, launch.worker.world_size)
    if found != expected:
        raise LauncherError(
            f"torch.distributed is initialized already, as worker {found[0]} of {found[1]}, but {launch.launcher} "
            f"started worker {expected[0]} of {expected[1]}: call torch.distributed.destroy_process_group() first"
        )
    return True


def open_store(launch: Launch, timeout: timedelta, *, wait_for_workers: bool = True) -> Store:
    """Open the key-value store of all workers of this launch, for the keys of the open strategy.

    Without `wait_for_workers`, rank 0 returns before the others have come, and can find out who is missing.

    Raises:
        LauncherError: there is no address to meet at, it cannot be used, or it belongs to another job.
    """
    worker = launch.worker
    if worker.world_size == 1 and launch.address is None:
        return HashStore()
    if launch.launcher == "torchrun":
        # torchrun's agent hosts the store; torch itself knows the variables with its address.
        store, _, _ = next(rendezvous("env://", timeout=timeout))
        return _of_this_entry(store)
    if launch.address not in _stores:
        with explained(launch):
            _stores[launch.address] = _keep_or_reach(launch, timeout, wait_for_workers)
    _stores[launch.address].set_timeout(timeout)
    return _of_this_entry(_stores[launch.address])


def _of_this_entry(store: Store) -> Store:
    """Return the store with keys for this strategy only: the next one in this process must not find old addresses."""
    return PrefixStore(f"farandole/{entry.generation()}", store)


def _keep_or_reach(launch: Launch, timeout: timedelta, wait_for_workers: bool) -> TCPStore:
    """Host the store on rank 0, and connect the others to it."""
    worker = launch.worker
    if launch.address is not None:
        return _at_the_address(launch, launch.address, timeout, wait_for_workers)
    store_of_launcher = find_horovodrun_store()
    if store_of_launcher is None:
        raise LauncherError(
            f"{launch.launcher} started {worker.world_size} workers but gives them no address to meet at: "
            "set MASTER_ADDR (rank 0's host) and MASTER_PORT (a free port there) for all of them"
        )
    if worker.is_main:
        # Listen before sharing the address: a free port could otherwise be another job's by then.
        host = host_towards(store_of_launcher.host, store_of_launcher.port)
        store = _tcp_store(launch, (host, 0), timeout)
        store_of_launcher.put(_KEY, f"{host}:{store.port}")
        return store
    address = store_of_launcher.wait(_KEY, timeout.total_seconds())
    if address is None:
        raise LauncherError(f"rank 0 did not send its address within {timeout.total_seconds():.0f} s")
    host, _, port = address.rpartition(":")
    return _tcp_store(launch, (host, int(port)), timeout)


def _at_the_address(launch: Launch, address: tuple[str, int], timeout: timedelta, wait_for_workers: bool) -> TCPStore:
    """Host or reach the store at an address that another job may have too."""
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
    # Multi-tenant, like torch's own: a group of the user's code at this address uses the same server.
    return TCPStore(
        *address, is_master=launch.worker.is_main, timeout=timeout, wait_for_workers=False, multi_tenant=True
    )


def open_side_store(strategy: Strategy) -> Store:
    """Open a joined strategy's own key-value store, hosted by rank 0; all workers call it.

    It uses a free port, which the engine broadcasts, so that it needs nothing from the launcher.
    """
    store: Store | None = None
    address: tuple[str, int] | None = None
    if strategy.worker.is_main:
        host = own_host(strategy.launch)
        served = TCPStore(host, 0, is_master=True, wait_for_workers=False)
        store, address = served, (host, served.port)
    address = strategy.broadcast(address)
    assert address is not None
    return store or TCPStore(address[0], address[1], is_master=False)


def init_companion_group(strategy: Strategy, store: Store) -> None:
    """Initialize torch.distributed's default group, on Gloo, beside an engine with its own communication.

    Much code in training loops, torchmetrics for example, asks torch.distributed for other workers, and without a group
    takes a worker's own numbers for the whole.
    """
    # Gloo for CUDA tensors too: nothing would order NCCL's collectives beside those of the engine's own NCCL.
    init_default_group("gloo", store, strategy.worker)
