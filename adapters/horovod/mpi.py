"""Keep MPI for as long as the process lives, for Horovod to be initialized as often as strategies are entered.

MPI can be initialized once in a process, and Horovod finalizes it when it shuts down, but only if it was Horovod that
initialized it (horovod/common/mpi/mpi_context.cc). So it is initialized here, before Horovod is.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from typing import Any

_THREAD_MULTIPLE = 3  # MPI_THREAD_MULTIPLE, in Open MPI and in MPICH; what Horovod asks for

_failed = False


def keep_mpi() -> None:
    """Initialize MPI, unless it is; to be called before `hvd.init()`, by a worker that mpirun started.

    Nothing is done where Horovod was built without MPI.
    """
    global _failed
    _failed = False
    library = ctypes.CDLL(None)  # Horovod has loaded its own for all to see, and with it MPI's
    if not hasattr(library, "MPI_Init_thread") or _asks(library.MPI_Initialized):
        return
    # Before Horovod adds its own function, which therefore comes first at exit.
    atexit.register(_finalize, library)
    library.MPI_Init_thread(None, None, _THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))


def do_not_wait_at_exit() -> None:
    """Take note of a failure: MPI is finalized by all workers together, and mpirun ends those that wait for this one.

    It is forgotten when Horovod joins a job again.
    """
    global _failed
    _failed = True


def _finalize(library: ctypes.CDLL) -> None:
    if not _failed and not _asks(library.MPI_Finalized):
        library.MPI_Finalize()


def _asks(question: Callable[[Any], Any]) -> bool:
    answer = ctypes.c_int()
    question(ctypes.byref(answer))
    return bool(answer.value)
