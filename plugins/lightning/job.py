"""The one strategy of ours that this process has joined: it stays joined from one Trainer to the next."""

from __future__ import annotations

import atexit
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.distributed import PrefixStore

from ...adapters import WorkerLostError, entry
from ...adapters.leaving import end_timeout, end_with_failure, has_succeeded, leave_timeout
from ...adapters.torch.default_group import destroy_process_group
from ...adapters.torch.meeting import Meeting
from ...adapters.torch.rendezvous import init_companion_group, open_side_store
from ...adapters.torch.strategy import TorchStrategy

_LONGEST_ALONE = 300.0  # seconds that started workers may run after the one that started them has left


@dataclass(frozen=True)
class Joined:
    """A strategy that this process has joined.

    meeting: where its workers meet without the engine; `None` for a single worker.
    """

    key: Any
    strategy: TorchStrategy
    meeting: Meeting | None


_joined: list[Joined] = []
_meetings: list[Meeting] = []  # also of a strategy that was abandoned
_companions: list[Any] = []  # torch's process group, if we created it for a strategy
_started: list[subprocess.Popen[Any]] = []  # workers started by this one


def join(key: Any, create: Callable[[], TorchStrategy], started: Sequence[subprocess.Popen[Any]]) -> Joined:
    """Return the joined strategy with this key; if the key differs, leave the old one, and create and join a new one.

    Args:
        started: workers started by this process, which also decide the job's exit code.
    """
    _started[:] = started
    atexit.unregister(_end_started)
    atexit.register(_end_started)
    for known in _joined:
        if known.key == key:
            return known
    leave()
    with contextlib.ExitStack() as stack:
        strategy = stack.enter_context(create())
        stack.callback(entry.close_later, _close_beside)
        joined = Joined(key, strategy, _open_beside(strategy))
        stack.pop_all()
    entry.leave_for_another(leave)
    _joined.append(joined)
    # Register again each time, to run before the handler that Horovod has just added: the last one runs first.
    atexit.unregister(_leave_at_exit)
    atexit.register(_leave_at_exit)
    return joined


def leave() -> None:
    """Leave the job, as all workers do."""
    while _joined:
        with contextlib.ExitStack() as stack:
            strategy = _joined.pop().strategy
            stack.push(strategy)
            stack.callback(_close_beside)
            strategy.barrier()  # no worker is in a collective of the group


def _open_beside(strategy: TorchStrategy) -> Meeting | None:
    """Open a strategy's extra connections, and return where its workers meet."""
    if strategy.worker.world_size == 1:
        return None
    store = open_side_store(strategy)
    meeting = Meeting(PrefixStore("meeting", store), strategy.worker)
    _meetings.append(meeting)
    if not dist.is_initialized():
        init_companion_group(strategy, PrefixStore("group", store))
        _companions.append(dist.group.WORLD)
    return meeting


def _close_beside() -> None:
    """Close a strategy's extra connections."""
    while _meetings:
        _meetings.pop().close()
    if _companions:
        _companions.clear()
        destroy_process_group()


def abandon(strategy: TorchStrategy, error: BaseException) -> None:
    """Leave after a failure, without waiting for other workers."""
    for known in list(_joined):
        if known.strategy is strategy:
            _joined.remove(known)
            entry.close_later(_close_beside)  # others may be in a collective of the group
            if known.meeting is not None and not has_succeeded(error):
                known.meeting.tell(error)
            try:
                strategy.__exit__(type(error), error, error.__traceback__)
            except WorkerLostError as lost:
                error.add_note(str(lost))  # the caller raises the engine's own error


def _leave_at_exit() -> None:
    error = getattr(sys, "last_value", None)  # set by Python if an exception ended the program, but not by `sys.exit`
    for known in list(_joined):
        if error is not None:
            abandon(known.strategy, error)
        elif known.meeting is None or known.meeting.all_come("exit"):
            leave()
        else:
            _leave_alone(known)


def _leave_alone(known: Joined) -> None:
    """Leave while the others stay: if they still need this worker, they report it as lost."""
    _joined.remove(known)
    _close_beside()
    with contextlib.suppress(WorkerLostError):  # the workers had lost each other before
        known.strategy.__exit__(None, None, None)
    until = time.monotonic() + _LONGEST_ALONE
    # A worker that needed this one fails; the exit code of this process, which started them, must then be a failure.
    codes = [_wait_for(process, until) for process in _started]
    if any(codes):
        end_with_failure()


def _end_started() -> None:
    """End the workers that this one started if it fails: they may be waiting for it."""
    if getattr(sys, "last_value", None) is not None:
        until = time.monotonic() + leave_timeout() / 3
        for process in _started:
            _wait_for(process, until)


def _wait_for(process: subprocess.Popen[Any], until: float) -> int:
    """Return the exit code of a worker that this one started; end it if it does not exit in time."""
    for seconds, end in ((until - time.monotonic(), process.terminate), (end_timeout(), process.kill)):
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            said = f"worker process {process.pid} goes on after worker 0 has left the job: ending it"
            print(f"farandole: {said}", file=sys.stderr, flush=True)
            end()
    return process.wait()
