"""Import Horovod for a framework, and say how to rebuild it where it lacks what a strategy needs."""

from __future__ import annotations

import importlib
from typing import Any

from ..capabilities import Framework
from ..errors import EngineUnavailableError

_REBUILD = "Rebuild it with: farandole horovod install --force"


def import_horovod(framework: Framework, name: str, version: str) -> Any:
    """Return Horovod's module for a framework that is installed.

    Args:
        name, version: the framework's, for messages.

    Raises:
        ModuleNotFoundError: Horovod is not installed.
        EngineUnavailableError: Horovod was built without this framework, or for another version of it.
    """
    try:
        found = importlib.import_module(f"horovod.{framework}")
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        raise EngineUnavailableError(
            f"Horovod is installed, but not built for this {name} {version} ({str(error).splitlines()[0]}). {_REBUILD}"
        ) from None
    if not hasattr(found, "init"):  # without PyTorch support, Horovod's module imports, but is empty
        raise EngineUnavailableError(f"Horovod is installed, but was built without {name}. {_REBUILD}")
    return found


def accelerators(hvd: Any) -> frozenset[str]:
    """Return the types of devices that this Horovod reduces on."""
    return frozenset({"cpu", "cuda"} if hvd.nccl_built() else {"cpu"})


def require_nccl(hvd: Any) -> None:
    """Raise `EngineUnavailableError` if this Horovod cannot train on GPUs."""
    if not hvd.nccl_built():
        raise EngineUnavailableError(
            "this Horovod was built without NCCL and cannot train on GPUs: run `farandole horovod install --force` "
            "where CUDA and NCCL are installed, or pass device='cpu'"
        )
