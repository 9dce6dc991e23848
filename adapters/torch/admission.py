"""Admit only the workers of one job to rank 0's store, even if another job has the same address.

The second job's rank 0 cannot listen and ends, but its other workers reach the first job's store, with ranks that the
first job has too. So each rank is taken once at the store, preferably by a worker with the same parent process as rank
0, and the second worker of a rank gets an error.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore

from ..errors import LauncherError
from ..launch.variables import Launch
from ..origin import PATIENCE, Origin, is_stranger, own_origin

_PREFIX, _JOB = "farandole/admission", "job"
_POLL = 0.02  # seconds
_TELLING = timedelta(seconds=2)


def announce(store: Store, launch: Launch) -> None:
    """On rank 0, write the job's description into the store."""
    _of_admission(store).set(_JOB, json.dumps([launch.worker.world_size, _own_origin(launch)]))


def wait_for_all(store: Store, launch: Launch, timeout: timedelta) -> None:
    """Return on rank 0 once all other ranks are taken.

    Raises:
        LauncherError: some were not taken within `timeout`.
    """
    store, size = _of_admission(store), launch.worker.world_size
    ranks = range(1, size)
    try:
        store.wait([_of_rank(rank) for rank in ranks], timeout)
    except dist.DistStoreError:
        missing = [rank for rank in ranks if not store.check([_of_rank(rank)])]
        named = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))} of {size}"
        raise LauncherError(
            f"{named} did not come within {timeout.total_seconds():.0f} s to {where(launch)}: look into their output "
            "for an error, or for a strategy that was never entered"
        ) from None


def take_rank(store: Store, launch: Launch, timeout: timedelta, origin: Origin | None = None) -> None:
    """Take this worker's rank at rank 0's store.

    Raises:
        LauncherError: the store belongs to another job, or the rank is taken.
    """
    store, worker, origin = _of_admission(store), launch.worker, origin or _own_origin(launch)
    who, rank, turned_away = f"{worker.rank} of {worker.world_size}", _of_rank(worker.rank), _turned_away(origin[:2])
    if not _wait_for(store, (_JOB, turned_away), timeout.total_seconds()):
        raise LauncherError(
            f"rank 0 did not come within {timeout.total_seconds():.0f} s to the store that worker {who} found at "
            f"{where(launch)}: look into its output for an error"
        )
    size, main = json.loads(store.get(_JOB)) if store.check([_JOB]) else (0, origin)
    if is_stranger(origin, main):
        _wait_for(store, (rank, turned_away), PATIENCE)
    if size != worker.world_size or (is_stranger(origin, main) and store.check([turned_away])):
        raise LauncherError(
            f"worker {who} met another job's rank 0 at {where(launch)}: two jobs use the same port; "
            + free_port_advice(launch)
        )
    taken = json.loads(store.compare_set(rank, "", json.dumps(origin)))
    if taken != origin:
        raise LauncherError(
            f"two processes say that they are worker {who} at {where(launch)}, and process {taken[2]} on {taken[0]} "
            f"was first: if two jobs use the same port, {free_port_advice(launch)}"
        )


def _wait_for(store: Store, keys: tuple[str, str], timeout: float) -> bool:
    """Wait for one of two keys; return whether one is there after at most `timeout` seconds."""
    until = time.monotonic() + timeout
    while not any(store.check([key]) for key in keys):
        if time.monotonic() > until:
            return False
        time.sleep(_POLL)
    return True


def turn_workers_away(launch: Launch, address: tuple[str, int]) -> None:
    """Tell the other workers of this rank 0, which cannot listen, that the store at this address is another job's.

    If a program other than a store listens there, the workers find out by themselves.
    """
    host, *starters = _own_origin(launch)

    def tell() -> None:
        with contextlib.suppress(RuntimeError):
            others = _of_admission(TCPStore(*address, is_master=False, timeout=_TELLING))
            for started_by in starters:
                others.set(_turned_away([host, started_by]), "")

    # In a thread: torch waits for ever for a server that does not answer.
    thread = threading.Thread(target=tell, name="farandole-admission", daemon=True)
    thread.start()
    thread.join(_TELLING.total_seconds())


def where(launch: Launch) -> str:
    """Return the variables with the address at which this job's workers meet."""
    return "MASTER_ADDR={}, MASTER_PORT={}".format(*(launch.address or ("?", "?")))


def free_port_advice(launch: Launch) -> str:
    """Return the command or variable that chooses a free port."""
    ways = {
        "deepspeed": "choose a free one with: deepspeed --master_port",
        "lightning": "start again, or choose a free one in MASTER_PORT",
    }
    return ways.get(launch.launcher, "choose a free one in MASTER_PORT, the same for all workers of a job")


def _own_origin(launch: Launch) -> Origin:
    return own_origin(launch.worker.rank, launch.worker.world_size)


def _of_admission(store: Store) -> Store:
    return PrefixStore(_PREFIX, store)


def _of_rank(rank: int) -> str:
    return f"rank/{rank}"


def _turned_away(starter: Origin) -> str:
    return "turned away/{}/{}".format(*starter)
