"""Undocumented names of Horovod, known in its last release.

Files are those of Horovod 0.28.1, below `horovod/`. Each is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

from ..undocumented import Library, Method, View

HOROVOD = Library("Horovod", "horovod", ("0.28.1",), "farandole horovod install --force")


class DistributedOptimizerView(View):
    """What `horovod.torch.DistributedOptimizer` returns (torch/optimizer.py)."""

    library = HOROVOD
    set_passes_per_step = Method("set_backward_passes_per_step")


def check() -> None:
    """Check what both engines need.

    Raises:
        EngineUnavailableError: the installed Horovod lacks it.
    """
    internal_error()


def check_torch() -> None:
    """Check what the engine for PyTorch needs, as `check`."""
    check()
    for optimizer in ("_DistributedOptimizer", "_DistributedAdasumOptimizer"):
        DistributedOptimizerView.check_class(HOROVOD.load("horovod.torch.optimizer", optimizer))


def internal_error() -> type[Exception]:
    """Return the error that failed collectives raise (common/exceptions.py)."""
    found: type[Exception] = HOROVOD.load("horovod.common.exceptions", "HorovodInternalError")
    return found


def rendezvous_server() -> Any:
    """Return a rendezvous server: `start()` returns its port (runner/http/http_server.py)."""
    return HOROVOD.load("horovod.runner.http.http_server", "RendezvousServer")()


def launcher() -> Any:
    """Return the module of the command `horovodrun`."""
    return HOROVOD.load("horovod.runner.launch")
