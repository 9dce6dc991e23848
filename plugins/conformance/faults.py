"""How one worker of a job fails, in forward, in a collective, in save or in load, while the others wait there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ...adapters import Strategy

WHERE = ("forward", "collective", "save", "load")
HOW = ("raise", "kill")
MESSAGE = "this fault was planned"
BROKE = "broke"
"""The file that a worker creates when it fails."""


def breaks(strategy: Strategy, where: str) -> bool:
    """Whether this worker fails: the last one, or the first for what only rank 0 does, such as saving."""
    worker = strategy.worker
    return worker.is_main if where == "save" else worker.rank == worker.world_size - 1


def fail(how: str, folder: Path) -> None:
    """Fail here, after creating `BROKE` in the folder, whose time records when."""
    (folder / BROKE).touch()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(MESSAGE)
