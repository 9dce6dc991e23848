"""Tell the workers of one job from those of another job with the same address, by the process that started them.

Slurm and Open MPI name the job; plain variables only name an address. Then two jobs on one machine differ by their
parent process: one process starts all workers of a job (a launcher, a script), or rank 0 starts the others (Lightning).
"""

from __future__ import annotations

import os
import socket
from typing import Any

Origin = list[Any]
"""A machine's name, what started the worker (the name of a job, or a process id), and the worker's process id.

A list, because JSON returns it as one.
"""

# Rank and number of workers as a scheduler gives them, and the variables that name its job.
_NAMED = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
)

PATIENCE = 5.0
"""Seconds for which a worker on rank 0's machine that another process started waits for one of this job's.

The workers of one process come together, apart from the time of imports on a busy machine. So a job whose workers were
started by hand, in several shells, joins this much later.
"""


def own_origin(rank: int, world_size: int) -> Origin:
    """Return this worker's origin."""
    started_by: str | int = os.getppid()
    for rank_variable, size_variable, names in _NAMED:
        job = [os.environ.get(name) for name in names]
        # Otherwise the scheduler started another program, which started this job.
        if all(job) and [os.environ.get(rank_variable), os.environ.get(size_variable)] == [str(rank), str(world_size)]:
            started_by = " ".join([*names, *map(str, job)])
    return [socket.gethostname(), started_by, os.getpid()]


def is_stranger(worker: Origin, main: Origin) -> bool:
    """Whether a worker may belong to another job than rank 0; on another machine this is not known, so false."""
    host, started_by, _ = worker
    return bool(host == main[0] and started_by not in main[1:])
