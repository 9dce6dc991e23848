"""The software and machine of a report."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from typing import Any

import psutil

from ..plugins.launch.installed import versions


def describe_environment() -> dict[str, Any]:
    """Return installed versions, the machine (memory in MB), and the time (UTC), without imports."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "memory_mb": psutil.virtual_memory().total // 1_000_000,
        "python": platform.python_version(),
        **versions(),
    }
