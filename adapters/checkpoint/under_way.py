"""The saves that are running in this process, and what happens to them when it ends.

However a program ends, each worker waits for its own writing, and worker 0 for the others' parts in storage. No
collective is called: other workers may not call it. What is not whole in time is reported as lost.
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

    path: its path, as the user wrote it.
    data: the name of its data folder.
    """

    @property
    def path(self) -> str: ...

    @property
    def data(self) -> str: ...

    def finish(self, deadline: float) -> str | None:
        """Wait until `deadline`, of `time.monotonic()`, without the other workers; return what failed, if anything."""
        ...


_saves: list[UnderWay] = []


def add(save: UnderWay) -> None:
    """Note that a save begins."""
    _finish_at_exit()
    _saves.append(save)
    sigterm.watch(_end_by_sigterm)


def remove(save: UnderWay) -> None:
    """Note that a save has ended, and that all workers know how."""
    with contextlib.suppress(ValueError):
        _saves.remove(save)
    if not _saves:
        sigterm.unwatch()


def is_under_way(data: str) -> bool:
    """Whether this process is writing a data folder of this name."""
    return any(save.data == data for save in _saves)


def finish(succeeded: bool) -> bool:
    """Finish running saves as this worker leaves its job; return whether all checkpoints are whole.

    Raises:
        CheckpointError: a checkpoint is lost, although the program succeeded. Otherwise a line on stderr says so,
            beside the error that the program ends with.
    """
    lost: list[str] = []
    try:
        for failure in _failures():
            lost.append(failure)
    except BaseException:  # Ctrl-C: stop waiting
        lost += [f"cannot save to {save.path}: this worker was interrupted" for save in _saves]
        succeeded = False
        raise
    finally:
        for save in list(_saves):
            remove(save)
        if not succeeded:
            say_lost(lost)
    if lost and succeeded:
        raise CheckpointError("; ".join(lost)) from None  # not beside a SystemExit
    return not lost


def _failures() -> Iterator[str]:
    deadline = time.monotonic() + leave_timeout()
    for save in list(_saves):
        failure = save.finish(deadline)
        remove(save)
        if failure is not None:
            yield failure


def _end_by_sigterm() -> None:
    deadline = time.monotonic() + leave_timeout()
    for save in list(_saves):  # they stay in the list: the main thread may wait for them too
        failure = save.finish(deadline)
        if failure is not None:
            say_lost([f"{failure} (ended by SIGTERM)"])


def say_lost(failures: Iterable[object]) -> None:
    """Print the failures that the program's own error does not report."""
    for failure in failures:
        print(f"farandole: checkpoint lost: {failure}", file=sys.stderr, flush=True)


@functools.cache
def _finish_at_exit() -> None:
    """Register for strategies that are never left: in a generator, say, or entered without `with`."""
    # An `atexit` function comes too late: by then no thread can be started, and no pool accepts work. Python's own
    # pools end by the same function, which runs the latest first.
    import concurrent.futures.thread  # noqa: F401

    before_threads_are_joined(_finish_what_was_not_left)


def _finish_what_was_not_left() -> None:
    if not finish(succeeded=False):
        end_with_failure()
