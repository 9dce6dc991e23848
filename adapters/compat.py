"""What we use of Python itself and it does not document; each with what is done where it is missing."""

from __future__ import annotations

import atexit
import multiprocessing.context
import threading
from collections.abc import Callable
from typing import Any


def imports_script_again() -> bool:
    """Whether this is a process of multiprocessing's that imports the script it was started from.

    It is the mark by which multiprocessing itself refuses to start a process there (multiprocessing/spawn.py); without
    it, nothing is refused.
    """
    return bool(getattr(multiprocessing.current_process(), "_inheriting", False))


def is_sent_to_a_new_process() -> bool:
    """Whether an object that is being pickled goes to a process that multiprocessing starts."""
    return multiprocessing.context.get_spawning_popen() is not None


def before_threads_are_joined(function: Callable[[], Any]) -> None:
    """Call a function when the interpreter begins to end, the latest first; without that, when it ends.

    Python's own pools of threads end by it (concurrent/futures/thread.py).
    """
    register = getattr(threading, "_register_atexit", atexit.register)
    register(function)
