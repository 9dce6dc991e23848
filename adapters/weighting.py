"""Weigh micro-batches so that the workers' losses add up to the mean over the global batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, SupportsFloat

from .batches import Batch
from .errors import DataError


def weight_of(micro_batch: Any, weight: Callable[[Any], SupportsFloat]) -> float:
    """Return the weight of a micro-batch, from the user's function.

    Raises:
        DataError: the function returned a negative number, infinity or NaN.
    """
    value = float(weight(micro_batch))
    if not 0 <= value < math.inf:
        raise DataError(f"weight(micro_batch) returned {value}: it must be 0 or more")
    return value


def total_of(batch: Batch) -> float:
    """Return the weight of the whole global batch, waiting for its reduction if necessary.

    Raises:
        DataError: it is not positive.
    """
    total = float(batch.global_weight)
    if not total > 0:
        raise DataError(f"the weights of the global batch before {batch.progress} add up to {total}: it has no mean")
    return total


def mean_factor(weight: float, total: float, world_size: int) -> float:
    """Return the factor for the mean loss of `weight` of `total` samples.

    The mean over the workers is then the mean over the global batch, however uneven their shares are.
    """
    return weight * world_size / total
