"""A median and its confidence interval, without assumptions on the distribution."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return bounds that contain the distribution's median with at least this confidence.

    The number of n values below the median is binomial(n, 1/2), so two order statistics bound it (David and Nagaraja,
    Order Statistics, 3rd edition, section 7.1). With fewer than 6 values the smallest and largest are returned.
    """
    ordered = sorted(values)
    outside = 0.0  # the probability that the median is below the `left_out`-th smallest
    left_out = 0
    while True:
        outside += comb(len(ordered), left_out) / 2 ** len(ordered)
        if outside > (1 - confidence) / 2:
            break
        left_out += 1
    first = max(left_out - 1, 0)
    return ordered[first], ordered[len(ordered) - 1 - first]
