"""Numbers, times and causes as people read them."""

from __future__ import annotations

import datetime
import math
from typing import Any

_REASONS = {
    "data": "it waited for its data",
    "forward": "its forward pass was slow",
    "backward": "its backward pass was slow",
    "update": "its update was slow",
    "memory": "its memory was paged",
    "gc": "Python collected garbage",
    "unexplained": "no phase explains it",
}


def reason(cause: str) -> str:
    """Return a straggler's cause as a clause."""
    return _REASONS.get(cause, cause)


def number(value: float, digits: int = 3) -> str:
    """Return a number as people read it: with at least so many digits, and commas in thousands."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def duration(seconds: float) -> str:
    """Return a duration, for example "3 h 20 min"."""
    if not math.isfinite(seconds):
        return "-"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60:,} h {minutes % 60} min"


def when(time: Any) -> str:
    """Return a time of day, in UTC; "-" if it is none."""
    try:
        return datetime.datetime.fromtimestamp(time, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return "-"


def of_workers(number: Any) -> str:
    """Return "1 worker", or "2 workers"."""
    return f"{number} worker" if number == 1 else f"{number} workers"
