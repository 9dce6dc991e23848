"""Which GPU a worker gets from its launcher, among those that its process sees."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ..errors import LauncherError
from ..worker import Worker


def gpu_of(worker: Worker, visible: int, environ: Mapping[str, str] = os.environ) -> int:
    """Return the number of a worker's GPU, if its process sees `visible` of them: the local rank.

    A launcher may show each worker only one GPU, as Slurm does with --gpus-per-task; then it is that one. It sets
    CUDA_VISIBLE_DEVICES; without that, one visible GPU is the machine's only one.

    Raises:
        LauncherError: there are fewer GPUs than workers.
    """
    if visible == 1 and environ.get("CUDA_VISIBLE_DEVICES"):
        return 0
    if worker.local_rank >= visible or (visible == 1 and worker.local_world_size > 1):
        raise LauncherError(
            f"{worker.local_world_size} workers on this machine, but only {visible} GPU(s): start at most {visible} of "
            "them here, or pass device='cpu'"
        )
    return worker.local_rank
