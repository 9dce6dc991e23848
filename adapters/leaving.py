"""How a worker leaves its job: whether in order, and how long it may wait then."""

from __future__ import annotations

import os

_TIMEOUT = "FARANDOLE_LEAVE_TIMEOUT"


def leave_timeout() -> float:
    """Return the seconds that a worker which leaves may wait in all: 15, or FARANDOLE_LEAVE_TIMEOUT for tests."""
    return float(os.environ.get(_TIMEOUT) or 15)


def leaves_in_order(error: BaseException | None) -> bool:
    """Whether a program that is left by `error` has succeeded: without one, or by `sys.exit(0)`."""
    return error is None or (isinstance(error, SystemExit) and error.code in (None, 0))
