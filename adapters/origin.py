"""Tell the workers of one job from those of another that was told the same address, by who started them.

Plain variables name a place to meet, but no job. What tells two jobs of one machine apart is that one process starts
the workers of a job (a launcher, a script), or that rank 0 starts the others (Lightning).
"""

from __future__ import annotations

import os
import socket
from typing import Any

Origin = list[Any]
"""A machine's name, the process there that started the worker, and the worker's own; a list as JSON gives it back."""

PATIENCE = 5.0
"""Seconds that a worker of rank 0's machine which something else started leaves its rank to one of this job's.

Workers that one process starts come together, give or take what their imports take on a busy machine. So a job whose
workers were started by hand, in several shells, joins this much later.
"""


def own_origin() -> Origin:
    """Return this process's."""
    return [socket.gethostname(), os.getppid(), os.getpid()]


def is_stranger(worker: Origin, main: Origin) -> bool:
    """Whether a worker may be another job's than rank 0; of another machine nothing can be told."""
    host, starter, _ = worker
    return bool(host == main[0] and starter not in main[1:])
