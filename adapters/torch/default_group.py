"""Initialize and destroy torch.distributed's default process group, so that nothing of it stays in this process."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import Store

from ..worker import Worker

_hooks: tuple[Callable[..., Any], Callable[..., Any]] | None = None  # sys.excepthook before and after


def init_default_group(backend: str, store: Store, worker: Worker, timeout: timedelta | None = None) -> None:
    """Initialize the group; end it with `destroy_process_group`."""
    global _hooks
    before = sys.excepthook
    dist.init_process_group(backend, store=store, rank=worker.rank, world_size=worker.world_size, timeout=timeout)
    _hooks = before, sys.excepthook


def destroy_process_group() -> None:
    """Close torch.distributed's default group, and wait until its threads are idle."""
    if dist.is_initialized():
        dist.destroy_process_group()
        _restore_excepthook()
        # Gloo's threads outlive the group while a model holds it, and release the last collective's tensors under the
        # GIL; a thread that asks for it while the interpreter ends aborts the process (pytorch#179291).
        time.sleep(0.02)


def _restore_excepthook() -> None:
    """Take back torch's hook, which puts "[rank1]:" before tracebacks: each group of a process would add another."""
    global _hooks
    if _hooks is not None and sys.excepthook is _hooks[1]:
        sys.excepthook = _hooks[0]
    _hooks = None
