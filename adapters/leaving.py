"""How a worker leaves its job: with success or not, how long it may wait, and with which exit code."""

from __future__ import annotations

import atexit
import logging
import os
import sys

_TIMEOUT = "FARANDOLE_LEAVE_TIMEOUT"
_failed = False


def leave_timeout() -> float:
    """Return the seconds that a leaving worker may wait in total: 15, or FARANDOLE_LEAVE_TIMEOUT for tests."""
    return float(os.environ.get(_TIMEOUT) or 15)


def end_timeout() -> float:
    """Return the seconds from asking a process to end until killing it: it may be leaving its job."""
    return leave_timeout() + 3


def has_succeeded(error: BaseException | None) -> bool:
    """Whether a program that ends with `error` has succeeded: without an error, or by `sys.exit(0)`."""
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))


def end_with_failure() -> None:
    """Make this process end with exit code 1: while it is ending, Python may already have chosen another one."""
    global _failed
    _failed = True


@atexit.register  # registered at import, so that it runs after later ones
def _end() -> None:
    if _failed:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
