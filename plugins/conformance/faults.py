"""How one worker of a job is to fail, in forward, in a collective, in save or in load, while the others wait there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from ...adapters import Strategy

WHERE = ("forward", "collective", "save", "load")
HOW = ("raise", "kill")
MESSAGE = "this fault was planned"
BROKE = "broke"
"""The file that a worker makes as it breaks."""


def breaks(strategy: Strategy, where: str) -> bool:
    """Whether this worker is the one to fail: the last one, or the first for what only rank 0 does, as in saving."""
    worker = strategy.worker
    return worker.is_main if where == "save" else worker.rank == worker.world_size - 1


def fail(how: str, folder: Path) -> None:
    """Fail here, and leave in the folder when that was."""
    (folder / BROKE).touch()
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError(MESSAGE)
