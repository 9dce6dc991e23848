"""The software and machine of a report."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

_DISTRIBUTIONS = (
    "farandole",
    "torch",
    "horovod",
    "deepspeed",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "lightning",
    "numpy",
    "scikit-learn",
)


def describe_environment() -> dict[str, Any]:
    """Return installed versions, the machine (memory in MB), and the time (UTC), without imports."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_mb": psutil.virtual_memory().total // 1_000_000,
        "python": platform.python_version(),
        **{name: found for name in _DISTRIBUTIONS if (found := _version(name)) is not None},
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
