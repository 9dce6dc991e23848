"""The peak memory of a function, on Linux."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

FREE_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc returns freed memory at once, so that resident memory is the memory in use."""


def peak_growth(act: Callable[[], object]) -> int:
    """Run `act`, and return the growth of resident bytes at its peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on; see proc(5)
    before = _resident("VmRSS")
    act()
    return _resident("VmHWM") - before


def _resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{kind}:"))
    return int(kilobytes) * 1024
