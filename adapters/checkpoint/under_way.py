"""The saves that are under way in this process, and what becomes of them when it ends.

However a program ends, each of its workers waits for its own writing, and worker 0 for the others' parts in storage:
no collectives, which others may not take part in. What is not whole in time is said to be lost.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Protocol

from ..compat import before_threads_are_joined
from ..errors import CheckpointError
from ..leaving import end_with_failure, leave_timeout
from . import sigterm


class UnderWay(Protocol):
    """A save that has begun.

    path: where to, as the user wrote it.
    data: the name of its data folder.
    """

    @property
    def path(self) -> str: ...

    @property
    def data(self) -> str: ...

    def finish(self, deadline: float) -> str | None:
        """Wait for it, until a time of `time.monotonic()`, without the other workers; return what went wrong."""
        ...


_saves: list[UnderWay] = []


def add(save: UnderWay) -> None:
    """Take note of a save that begins."""
    _finish_at_exit()
    _saves.append(save)
    sigterm.watch(_end_by_sigterm)


def remove(save: UnderWay) -> None:
    """Take note that a save has ended, and all workers know how."""
    with contextlib.suppress(ValueError):
        _saves.remove(save)
    if not _saves:
        sigterm.unwatch()


def is_under_way(data: str) -> bool:
    """Whether this process is writing a data folder of this name."""
    return any(save.data == data for save in _saves)


def finish(in_order: bool) -> bool:
    """Finish what is under way, as this worker leaves its job; return whether all checkpoints are whole.

    Raises:
        CheckpointError: in order only: a checkpoint is lost. Otherwise a line on stderr says so, beside the error that
            the program ends with.
    """
    told: list[str] = []
    try:
        for failure in _failures():
            told.append(failure)
    except BaseException:  # Ctrl-C: nobody waits any longer
        told += [f"cannot save to {save.path}: this worker was interrupted" for save in _saves]
        in_order = False
        raise
    finally:
        for save in list(_saves):
            remove(save)
        if not in_order:
            say_lost(told)
    if told and in_order:
        raise CheckpointError("; ".join(told)) from None  # not beside a SystemExit
    return not told


def _failures() -> Iterator[str]:
    deadline = time.monotonic() + leave_timeout()
    for save in list(_saves):
        failure = save.finish(deadline)
        remove(save)
        if failure is not None:
            yield failure


def _end_by_sigterm() -> None:
    deadline = time.monotonic() + leave_timeout()
    for save in list(_saves):  # they stay: the main thread may be waiting for them too
        failure = save.finish(deadline)
        if failure is not None:
            say_lost([f"{failure} (ended by SIGTERM)"])


def say_lost(failures: Iterable[object]) -> None:
    """Say what no error of the program says."""
    for failure in failures:
        print(f"farandole: checkpoint lost: {failure}", file=sys.stderr, flush=True)


@functools.cache
def _finish_at_exit() -> None:
    """For a strategy that is never left: in a generator, say, or entered without `with`."""
    # An `atexit` function comes too late: no thread can be started then, nor work be given to a pool. Python's own
    # pools end in the same way, and are to end after.
    import concurrent.futures.thread  # noqa: F401

    before_threads_are_joined(_finish_what_was_not_left)


def _finish_what_was_not_left() -> None:
    if not finish(in_order=False):
        end_with_failure()
