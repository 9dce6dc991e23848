"""Have the kernel end a child process whose parent is killed, when nobody is left to end it."""

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
    """Return what a child does before its program (`preexec_fn`), to be sent signal `number` when this process dies.

    Only Linux can do that; elsewhere it does nothing.
    """
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def tie() -> None:
        prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    return tie


def adopt_orphans() -> None:
    """Make this process the parent of what its children leave behind, so that it can be found; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
