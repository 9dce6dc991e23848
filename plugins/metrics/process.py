"""What a process uses: memory, processors, garbage collection, its GPU."""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Mapping
from typing import Any

import psutil

from .gpu import Gpu


class Pauses:
    """Adds up the time of garbage collection in this process, from `begin` to `end`."""

    def __init__(self) -> None:
        self._started: float | None = None
        self._total = 0.0

    def begin(self) -> None:
        """Start to count."""
        gc.callbacks.append(self._on_collection)

    def end(self) -> None:
        """Stop counting."""
        if self._on_collection in gc.callbacks:
            gc.callbacks.remove(self._on_collection)

    def take(self) -> float:
        """Return the seconds since the last call."""
        total, self._total = self._total, 0.0
        return total

    def _on_collection(self, phase: str, info: Mapping[str, int]) -> None:
        now = time.perf_counter()
        if phase == "start":
            self._started = now
        elif self._started is not None:
            self._total += now - self._started
            self._started = None


class ProcessUse:
    """Reads what this process uses, without its children.

    faults: pages that it had to read from a disk since the last `read`, for want of memory.
    """

    def __init__(self, gpu: Gpu | None) -> None:
        self._process = psutil.Process()
        self._gpu = gpu
        self._at, self._cpu, self._all_faults = self._now()
        self.faults = 0

    def read(self) -> dict[str, float]:
        """Return the values of a record, since the last call: CPU in percent of one processor; memory at this moment.

        A megabyte is a million bytes.
        """
        (before, cpu_before, faults_before), now = (self._at, self._cpu, self._all_faults), self._now()
        self._at, self._cpu, self._all_faults = now
        self.faults = self._all_faults - faults_before
        return {
            "memory_mb": self._process.memory_info().rss / 1e6,
            "cpu_percent": 100 * (self._cpu - cpu_before) / max(1e-9, self._at - before),
            **(self._gpu.read() if self._gpu is not None else {}),
        }

    def close(self) -> None:
        """Leave the GPU's library."""
        if self._gpu is not None:
            self._gpu.close()

    def _now(self) -> tuple[float, float, int]:
        used: Any = resource.getrusage(resource.RUSAGE_SELF)
        return time.perf_counter(), used.ru_utime + used.ru_stime, used.ru_majflt
