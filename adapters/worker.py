"""A process's rank and place in its job."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import LauncherError


@dataclass(frozen=True)
class Worker:
    """One process of a job: ranks count from 0, `local_*` within a machine, `node_rank` over machines."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    node_rank: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise LauncherError(f"rank {self.rank} does not exist among {self.world_size} workers")
        if self.local_world_size > self.world_size:
            raise LauncherError(f"{self.local_world_size} workers of one machine are more than all {self.world_size}")
        if not 0 <= self.local_rank < self.local_world_size:
            raise LauncherError(
                f"local rank {self.local_rank} does not exist among {self.local_world_size} workers of one machine"
            )

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the worker that writes what only one worker should write."""
        return self.rank == 0
