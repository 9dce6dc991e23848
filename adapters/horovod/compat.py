"""What we use of Horovod and it does not document; its last release is known to work.

Files are those of Horovod 0.28.1, below `horovod/`. Nothing is imported here before it is asked for.
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
    """Look for what both engines need.

    Raises:
        EngineUnavailableError: the installed Horovod does not have it.
    """
    internal_error()


def check_torch() -> None:
    """Look for what the engine for PyTorch needs, as `check`."""
    check()
    for optimizer in ("_DistributedOptimizer", "_DistributedAdasumOptimizer"):
        DistributedOptimizerView.check_class(HOROVOD.load("horovod.torch.optimizer", optimizer))


def internal_error() -> type[Exception]:
    """Return the error by which collectives fail (common/exceptions.py)."""
    found: type[Exception] = HOROVOD.load("horovod.common.exceptions", "HorovodInternalError")
    return found


def rendezvous_server() -> Any:
    """Return a server at which workers meet: `start()` returns its port (runner/http/http_server.py)."""
    return HOROVOD.load("horovod.runner.http.http_server", "RendezvousServer")()


def launcher() -> Any:
    """Return the module that the command `horovodrun` runs."""
    return HOROVOD.load("horovod.runner.launch")
