"""Start loader processes without forking a worker whose engine has threads.

A fork copies the locks that other threads hold at that moment, and nothing in the copy releases them: it hangs, and the
worker waits for its data for ever. This happens with Gloo, whose threads enter Python when they release a tensor
(https://github.com/python/cpython/issues/112275); PyTorch warns about it for Gloo and NCCL, in the notes on
https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel.html. So under an engine loader
processes are spawned: each imports the script and gets the dataset, pickled.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import pickle
import sys
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from ..errors import DataError, FarandoleError


def spawn_where_it_would_fork(loader: DataLoader[Any]) -> None:
    """Make a loader spawn its processes if it would fork them by default."""
    if loader.multiprocessing_context is None and _forks(loader):
        loader.multiprocessing_context = "spawn"


def forks_may_hang(loader: DataLoader[Any]) -> bool:
    """Return whether a loader forks processes, in a Python where that may hang (fixed in 3.11.10)."""
    return sys.version_info < (3, 11, 10) and _forks(loader)


@contextlib.contextmanager
def data_is_sent(loader: DataLoader[Any]) -> Iterator[None]:
    """Explain why data cannot be sent to spawned processes.

    Raises:
        DataError: the data, or a function given with it, cannot be pickled, or does not fit into shared memory.
    """
    try:
        yield
    except FarandoleError:
        raise
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if loader.num_workers == 0 or _forks(loader):
            raise
        raise DataError(
            f"the dataset, or a function given with it, cannot be sent to loader processes: {error}. Define its class "
            "and functions at the top of a module, with attributes that can be pickled; or load in this process "
            "(num_workers=0). multiprocessing_context='fork' sends nothing, but a process forked from an engine with "
            "threads may hang."
        ) from error


def _forks(loader: DataLoader[Any]) -> bool:
    context = loader.multiprocessing_context
    if context is not None:
        method = context.get_start_method()
    else:
        # Ask without fixing the default: a program may still set its own.
        method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    return loader.num_workers > 0 and method == "fork"
