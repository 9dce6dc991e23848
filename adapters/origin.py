"""Tell the workers of one job from those of another that was told the same address, by who started them.

Slurm and Open MPI name the job. Plain variables name a place to meet only. What tells two jobs of one machine apart
then is that one process starts the workers of a job (a launcher, a script), or rank 0 the others (Lightning).
"""

from __future__ import annotations

import os
import socket
from typing import Any

Origin = list[Any]
"""A machine's name, what started the worker there, and its process. What: a job's name, or else a process.

A list, as JSON gives it back.
"""

# Rank and number of workers as a scheduler counts them, and the variables that name its job.
_NAMED = (
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", ("PMIX_NAMESPACE",)),
)

PATIENCE = 5.0
"""Seconds that a worker of rank 0's machine which something else started leaves its rank to one of this job's.

Workers that one process starts come together, give or take what their imports take on a busy machine. So a job whose
workers were started by hand, in several shells, joins this much later.
"""


def own_origin(rank: int, world_size: int) -> Origin:
    """Return this worker's."""
    started_by: str | int = os.getppid()
    for rank_variable, size_variable, names in _NAMED:
        job = [os.environ.get(name) for name in names]
        # Otherwise the scheduler started something else, from which this job was started.
        if all(job) and [os.environ.get(rank_variable), os.environ.get(size_variable)] == [str(rank), str(world_size)]:
            started_by = " ".join([*names, *map(str, job)])
    return [socket.gethostname(), started_by, os.getpid()]


def is_stranger(worker: Origin, main: Origin) -> bool:
    """Whether a worker may be another job's than rank 0; of another machine nothing can be told."""
    host, started_by, _ = worker
    return bool(host == main[0] and started_by not in main[1:])
