"""How a worker leaves its job: whether in order, how long it may wait then, and with which exit code."""

from __future__ import annotations

import atexit
import logging
import os
import sys

_TIMEOUT = "FARANDOLE_LEAVE_TIMEOUT"
_failed = False


def leave_timeout() -> float:
    """Return the seconds that a worker which leaves may wait in all: 15, or FARANDOLE_LEAVE_TIMEOUT for tests."""
    return float(os.environ.get(_TIMEOUT) or 15)


def end_timeout() -> float:
    """Return the seconds that a process which was asked to end has until it is killed: it may be leaving its job."""
    return leave_timeout() + 3


def leaves_in_order(error: BaseException | None) -> bool:
    """Whether a program that is left by `error` has succeeded: without one, or by `sys.exit(0)`."""
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def end_with_failure() -> None:
    """Have this process, which is ending, do so with exit code 1: Python may have settled on another one already."""
    global _failed
    _failed = True


@atexit.register  # when this is imported: it comes after what is registered later
def _end() -> None:
    if _failed:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
