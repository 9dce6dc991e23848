"""What a worker's GPU does, from NVIDIA's management library, where it and the package `nvidia-ml-py` are."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ...adapters.launch.gpu import gpu_of
from ...adapters.strategy import Strategy


class Gpu:
    """The GPU of one worker; `find` returns it."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    @classmethod
    def find(cls, strategy: Strategy) -> Gpu | None:
        """Return this worker's GPU; `None` if it trains on the CPU, or NVIDIA's library cannot be asked."""
        if not any(kind in str(strategy.device).lower() for kind in ("cuda", "gpu")):
            return None
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # not installed, or no driver
            return None
        try:
            return cls(pynvml, _handle(pynvml, strategy))
        except Exception:  # another worker may find its own: training must not end here
            pynvml.nvmlShutdown()
            return None

    def read(self) -> dict[str, float]:
        """Return the values of a record: use in percent, memory of all processes on it in MB, power in W."""
        found: dict[str, float] = {}
        library, handle = self._library, self._handle
        reads: dict[str, Callable[[], float]] = {
            "gpu_percent": lambda: float(library.nvmlDeviceGetUtilizationRates(handle).gpu),
            "gpu_memory_mb": lambda: float(library.nvmlDeviceGetMemoryInfo(handle).used / 1e6),
            "gpu_watts": lambda: float(library.nvmlDeviceGetPowerUsage(handle) / 1000),
        }
        for name, read in reads.items():
            try:
                found[name] = read()
            except library.NVMLError:  # this GPU does not tell it
                continue
        return found

    def close(self) -> None:
        """Leave the library."""
        self._library.nvmlShutdown()


def _handle(library: Any, strategy: Strategy, environ: Mapping[str, str] = os.environ) -> Any:
    visible = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    visible = visible or [str(number) for number in range(library.nvmlDeviceGetCount())]
    _, _, index = str(strategy.device).lower().partition("cuda:")
    chosen = visible[int(index) if index.isdigit() else gpu_of(strategy.worker, len(visible))]
    if chosen.isdigit():
        return library.nvmlDeviceGetHandleByIndex(int(chosen))
    return library.nvmlDeviceGetHandleByUUID(chosen)
