"""Keep the processes that load data alive when all processes of a job are asked to end (SIGTERM).

A scheduler, and a shell, ask every process, or a whole process group. A worker then stops after its batch to save, and
needs its loaders until then; but PyTorch's loaders end at once, and the worker with them.
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
    """Make a DataLoader's processes ignore SIGTERM until the process that reads from them ends."""
    if getattr(loader, "num_workers", 0) > 0 and not isinstance(loader.worker_init_fn, _Outliving):
        _parent_ends()
        loader.worker_init_fn = _Outliving(loader.worker_init_fn)


class _Outliving:
    """A `worker_init_fn` that runs before the user's own.

    PyTorch, and multiprocessing when a program ends, end loader processes by SIGTERM too: theirs must work.
    """

    def __init__(self, then: Callable[[int], Any] | None, parent_ends: Any = None) -> None:
        self._then = then
        self._parent_ends = parent_ends

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled for a new process; a copy for any other purpose lacks what only a new process can inherit.
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
        # Python writes to it as soon as the signal comes, whatever the main thread does. Unlike an ignored or blocked
        # signal, a Python handler is not inherited by programs that the dataset starts.
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
