"""Keep MPI initialized until the process ends, so that Horovod can be initialized as often as strategies are entered.

MPI can be initialized once in a process. Horovod finalizes it when it shuts down, but only if Horovod initialized it
(horovod/common/mpi/mpi_context.cc). So we initialize MPI here, before Horovod does.
"""

from __future__ import annotations

import atexit
import ctypes
from collections.abc import Callable
from typing import Any

_THREAD_MULTIPLE = 3  # MPI_THREAD_MULTIPLE, in Open MPI and in MPICH; Horovod asks for it

_failed = False


def keep_mpi() -> None:
    """Initialize MPI unless it is already; call it before `hvd.init()`, in a worker that mpirun started.

    It does nothing if Horovod was built without MPI.
    """
    global _failed
    _failed = False
    library = ctypes.CDLL(None)  # Horovod loads its library, and with it MPI's, with global symbols
    if not hasattr(library, "MPI_Init_thread") or _asks(library.MPI_Initialized):
        return
    # Before Horovod registers its own function, which then runs first at exit.
    atexit.register(_finalize, library)
    library.MPI_Init_thread(None, None, _THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))


def do_not_wait_at_exit() -> None:
    """Skip MPI's finalization after a failure: it waits for all workers, and mpirun ends those that wait for this one.

    This is reset when Horovod joins a job again.
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
