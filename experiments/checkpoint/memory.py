"""How much memory a worker comes to hold while it does something, on Linux."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

FREE_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc gives freed memory back, without which what is resident says little of what is held."""


def peak_growth(act: Callable[[], object]) -> int:
    """Run `act`, and return how many bytes more than before it were resident at its peak."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on; see proc(5)
    before = _resident("VmRSS")
    act()
    return _resident("VmHWM") - before


def _resident(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(line.split()[1] for line in lines if line.startswith(f"{kind}:"))
    return int(kilobytes) * 1024
