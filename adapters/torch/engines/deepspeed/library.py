"""Import DeepSpeed and let it join, without a compiler and without its usual output."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.cpp_extension import get_default_build_root

from .... import entry
from ....errors import EngineUnavailableError
from .compat import communication, groups, modules_under_way, operators, release_cache

_SHARED_MEMORY_OP = "deepspeed_shm_comm"
_OPTIMIZER_OPS = ("cpu_adam", "cpu_adagrad", "cpu_lion", "fused_adam", "fused_lamb", "fused_lion")
_RENAMED = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"
_STALE_SECONDS = 60.0  # covers the time between two compilers in the folder; a running one is seen at once


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed for this kind of device, and return its module.

    Raises:
        EngineUnavailableError: it trains on another kind in this process.
    """
    # DeepSpeed chooses a GPU if it sees one, even for device='cpu'; this variable is its own switch.
    with entry.environment(DS_ACCELERATOR=os.environ.get("DS_ACCELERATOR", device.type)):
        import deepspeed
        from deepspeed.accelerator import get_accelerator

        chosen = get_accelerator().device_name()
    if chosen != device.type:
        raise EngineUnavailableError(
            f"DeepSpeed trains on {chosen!r} in this process, but the strategy's device is {device.type!r}: "
            f"unset DS_ACCELERATOR, or set it to {device.type}"
        )
    return deepspeed


def join_deepspeed(deepspeed: Any) -> None:
    """Let DeepSpeed communicate through torch's process group, which must be initialized.

    Raises:
        EngineUnavailableError: the lock of an interrupted build blocks its operators.
    """
    refuse_stale_locks()
    # DeepSpeed calls collectives by names that torch 2.13 deprecates, and every call would print a warning.
    warnings.filterwarnings("ignore", _RENAMED, FutureWarning)
    with _without_shared_memory_op():
        deepspeed.init_distributed(
            dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False
        )


def as_local_rank(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Within this context, DeepSpeed finds the GPU's number where it looks for the local rank.

    It takes the local rank for the number, and other libraries read the same variable: so only while it sets up.
    """
    if device.index is None:
        return contextlib.nullcontext()
    names = [name for name in ("LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_RANK") if name in os.environ]
    return entry.environment(**dict.fromkeys(names, str(device.index)))


def leave_deepspeed() -> None:
    """Forget the process group, which is about to be destroyed, unless the program created it."""
    known = groups()
    if known.copy_of_world is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group(known.copy_of_world)
    known.forget()
    communication().backend = None


def forget_module(module: torch.nn.Module) -> None:
    """Release a module that stage 3 trained, which holds its engine and the process group.

    DeepSpeed keeps modules for ever, in two places.
    """
    under_way = modules_under_way()
    under_way[:] = [other for other in under_way if other is not module]
    release_cache().cache_clear()


@contextlib.contextmanager
def _without_shared_memory_op() -> Iterator[None]:
    """Keep DeepSpeed from compiling its all-reduce over shared memory, which takes 23 s and needs a compiler.

    It then uses Gloo, as it does if the operator cannot be built.
    """
    compatible = operators()
    before = compatible.get(_SHARED_MEMORY_OP)
    compatible[_SHARED_MEMORY_OP] = False
    try:
        yield
    finally:
        compatible[_SHARED_MEMORY_OP] = before


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop DeepSpeed's warning about an untested optimizer: it is ours."""
    logger = logging.getLogger("DeepSpeed")

    def wanted(record: logging.LogRecord) -> bool:
        return "untested optimizer" not in record.getMessage()

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def refuse_stale_locks() -> None:
    """Find the lock of a killed build, for which the next build would wait for ever.

    Raises:
        EngineUnavailableError: there is one; the message says how to remove it.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    for operator in (*_OPTIMIZER_OPS, _SHARED_MEMORY_OP):
        for lock in root.glob(f"**/{operator}/lock"):
            if _age(lock) > _STALE_SECONDS and not _is_building(lock.parent):
                raise EngineUnavailableError(
                    f"a build of DeepSpeed's {operator} was interrupted and left {lock}, for which the next one would "
                    f"wait for ever. Remove it with: rm -r {lock.parent}"
                )


def _age(lock: Path) -> float:
    try:
        return time.time() - lock.stat().st_mtime
    except FileNotFoundError:  # the build has just ended
        return 0.0


def _is_building(folder: Path) -> bool:
    """Whether a compiler works in the folder; torch starts Ninja in it."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if folder.samefile(process.cwd()):
                return True
    return False
