"""The one strategy of ours that this process has joined: Trainers come and go, while the job stays joined."""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from ...adapters import WorkerLostError, entry
from ...adapters.leaving import leave_timeout
from ...adapters.torch.rendezvous import init_companion_group
from ...adapters.torch.strategy import TorchStrategy

_joined: list[tuple[Any, TorchStrategy]] = []
_companions: list[Any] = []  # the process group of torch's, where we made it beside a strategy


def join(key: Any, create: Callable[[], TorchStrategy]) -> TorchStrategy:
    """Return the joined strategy with this key; leave one with another key, and create and join one with this."""
    for known, strategy in _joined:
        if known == key:
            return strategy
    leave()
    _leave_companion_group()  # of one that was abandoned
    strategy = create()
    strategy.__enter__()
    entry.leave_for_another(leave)
    _joined.append((key, strategy))
    if strategy.worker.world_size > 1 and not dist.is_initialized():
        init_companion_group(strategy)
        _companions.append(dist.group.WORLD)
    # Anew each time, so that it comes before the handler that Horovod has just added: the last one runs first.
    atexit.unregister(_leave_or_abandon)
    atexit.register(_leave_or_abandon)
    return strategy


def leave() -> None:
    """Leave the job, as all workers do."""
    while _joined:
        strategy = _joined.pop()[1]
        strategy.barrier()  # nobody is in a collective of the group any more
        _leave_companion_group()
        strategy.__exit__(None, None, None)


def _leave_companion_group() -> None:
    if _companions:
        _companions.clear()
        dist.destroy_process_group()
        time.sleep(0.02)  # Gloo's threads let go of their last tensors under the GIL (pytorch#179291)


def abandon(strategy: TorchStrategy, error: BaseException) -> None:
    """Leave after a failure, without waiting for other workers."""
    for known in list(_joined):
        if known[1] is strategy:
            _joined.remove(known)
            try:
                strategy.__exit__(type(error), error, error.__traceback__)
            except WorkerLostError as lost:
                error.add_note(str(lost))  # who calls goes on with the engine's own error


def _leave_or_abandon() -> None:
    error = getattr(sys, "last_value", None)  # the interpreter's note of what ended the program; none of `sys.exit`
    for _, strategy in list(_joined):
        if error is None and meet(leave_timeout() / 3):
            leave()
        else:
            # Who needs this worker loses it now, and says so; where nobody does, all is well.
            abandon(strategy, error or SystemExit(1))


def meet(seconds: float) -> bool:
    """Return whether all workers come here within some seconds."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return True
    try:
        return bool(dist.barrier(async_op=True).wait(timedelta(seconds=seconds)))
    except RuntimeError:  # they did not, or are gone
        return False
