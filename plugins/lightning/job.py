"""The one strategy of ours that this process has joined: Trainers come and go, while the job stays joined."""

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
from ...adapters.torch.meeting import Meeting
from ...adapters.torch.rendezvous import init_companion_group, open_side_store
from ...adapters.torch.strategy import TorchStrategy

_LONGEST_ALONE = 300.0  # seconds that workers may go on alone, once the one that started them has left


@dataclass(frozen=True)
class Joined:
    """A strategy that this process has joined.

    meeting: where its workers meet outside of the engine; `None` for a single worker.
    """

    key: Any
    strategy: TorchStrategy
    meeting: Meeting | None


_joined: list[Joined] = []
_meetings: list[Meeting] = []  # also of a strategy that was abandoned
_companions: list[Any] = []  # the process group of torch's, where we made it beside a strategy
_started: list[subprocess.Popen[Any]] = []  # the workers that this one has started


def join(key: Any, create: Callable[[], TorchStrategy], started: Sequence[subprocess.Popen[Any]]) -> Joined:
    """Return the joined strategy with this key; leave one with another key, and create and join one with this.

    Args:
        started: the workers that this process has started: the job's exit code is theirs too.
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
    # Anew each time, so that it comes before the handler that Horovod has just added: the last one runs first.
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
            strategy.barrier()  # nobody is in a collective of the group any more


def _open_beside(strategy: TorchStrategy) -> Meeting | None:
    """Open what a strategy's workers have beside it, and return where they meet."""
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
    """Close what was opened beside a strategy."""
    while _meetings:
        _meetings.pop().close()
    if _companions:
        _companions.clear()
        dist.destroy_process_group()
        time.sleep(0.02)  # Gloo's threads let go of their last tensors under the GIL (pytorch#179291)


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
                error.add_note(str(lost))  # who calls goes on with the engine's own error


def _leave_at_exit() -> None:
    error = getattr(sys, "last_value", None)  # the interpreter's note of what ended the program; none of `sys.exit`
    for known in list(_joined):
        if error is not None:
            abandon(known.strategy, error)
        elif known.meeting is None or known.meeting.all_come("exit"):
            leave()
        else:
            _leave_alone(known)


def _leave_alone(known: Joined) -> None:
    """Leave where the others do not: they may need nothing any more, or lose this worker now, and say so."""
    _joined.remove(known)
    _close_beside()
    with contextlib.suppress(WorkerLostError):  # they had lost each other before
        known.strategy.__exit__(None, None, None)
    until = time.monotonic() + _LONGEST_ALONE
    # Whether this one is missed is for them to say, and the job's exit code is that of the process that started them.
    codes = [_wait_for(process, until) for process in _started]
    if any(codes):
        end_with_failure()


def _end_started() -> None:
    """Leave no worker behind that this one has started, where it fails: they may be waiting for it."""
    if getattr(sys, "last_value", None) is not None:
        until = time.monotonic() + leave_timeout() / 3
        for process in _started:
            _wait_for(process, until)


def _wait_for(process: subprocess.Popen[Any], until: float) -> int:
    """Return the exit code of a worker that this one has started; end it where it does not end by itself."""
    for seconds, end in ((until - time.monotonic(), process.terminate), (end_timeout(), process.kill)):
        try:
            return process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            said = f"worker process {process.pid} goes on after worker 0 has left the job: ending it"
            print(f"farandole: {said}", file=sys.stderr, flush=True)
            end()
    return process.wait()
