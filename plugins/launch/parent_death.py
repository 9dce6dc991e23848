"""Make the kernel end a child process when its parent is killed."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def tied_to_this_process(number: signal.Signals) -> Callable[[], None]:
    """Return a `preexec_fn` with which a child gets signal `number` when this process dies.

    It works on Linux only; elsewhere it does nothing.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return tie


def adopt_orphans() -> None:
    """Make this process the parent of its children's orphans, so that they can be found; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
