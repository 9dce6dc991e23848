"""Open MPI's mpirun, which starts the workers of a Horovod built with MPI."""

from __future__ import annotations

from .variables import Variables

VARIABLES = Variables(
    "openmpi",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
    None,
)
