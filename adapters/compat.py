"""Undocumented names of Python itself, each with what happens if it is missing."""

from __future__ import annotations

import atexit
import multiprocessing.context
import threading
from collections.abc import Callable
from typing import Any


def imports_script_again() -> bool:
    """Whether this is a process of multiprocessing that imports the script it was started from.

    multiprocessing itself uses this mark to refuse new processes during the import (multiprocessing/spawn.py). If it is
    missing, nothing is refused.
    """
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def is_sent_to_a_new_process() -> bool:
    """Whether an object is being pickled for a process that multiprocessing starts."""
    return multiprocessing.context.get_spawning_popen() is not None


def before_threads_are_joined(function: Callable[[], Any]) -> None:
    """Call a function when the interpreter begins to end, the latest first; if the name is missing, when it ends.

    Python's own thread pools end by it (concurrent/futures/thread.py).
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(function)
