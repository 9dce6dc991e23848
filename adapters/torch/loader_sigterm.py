"""Keep the processes that load data alive when all processes of a job are asked to end (SIGTERM).

A scheduler, and a shell, ask every process, or a whole process group. A worker then stops after its batch, so that it
can save, and needs its loaders until then; PyTorch's end at once, and the worker with them.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import multiprocessing.sharedctypes
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from ..compat import is_sent_to_a_new_process


def outlive_sigterm(loader: Any) -> None:
    """Have a DataLoader's processes end when the process that reads from them does, and not by SIGTERM before."""
    if getattr(loader, "num_workers", 0) > 0 and not isinstance(loader.worker_init_fn, _Outliving):
        _parent_ends()
        loader.worker_init_fn = _Outliving(loader.worker_init_fn)


class _Outliving:
    """A `worker_init_fn` that goes before the user's own.

    PyTorch, and multiprocessing when a program ends, end loader processes by SIGTERM too: theirs has to work.
    """

    def __init__(self, then: Callable[[int], Any] | None, parent_ends: Any = None) -> None:
        self._then = then
        self._parent_ends = parent_ends

    def __reduce__(self) -> tuple[Any, ...]:
        # To a process that is started; a copy for anything else is without what only such a process can be given.
        return _Outliving, (self._then, _parent_ends() if is_sent_to_a_new_process() else None)

    def __call__(self, worker_id: int) -> None:
        if threading.current_thread() is threading.main_thread():  # not in a loader of threads
            self._outlive()
        if self._then is not None:
            self._then(worker_id)

    def _outlive(self) -> None:
        parent_ends = self._parent_ends or _parent_ends()
        parent = os.getppid()
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        # Python writes to it as soon as the signal comes, whatever the main thread is in. A handler of Python's, unlike
        # an ignored or a blocked signal, is not handed on to programs that the dataset starts.
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda number, frame: None)

        def end_with_parent() -> None:
            while number := os.read(reading, 1):
                if number[0] == signal.SIGTERM and (parent_ends.value or os.getppid() != parent):
                    os._exit(0)

        threading.Thread(target=end_with_parent, daemon=True, name="farandole-loader-sigterm").start()


@functools.cache
def _parent_ends() -> Any:
    """Return a flag in shared memory, which this process raises before multiprocessing ends its children."""
    flag = multiprocessing.sharedctypes.RawValue(ctypes.c_bool, False)
    atexit.register(setattr, flag, "value", True)
    return flag
