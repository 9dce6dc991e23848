"""What part of a global batch a micro-batch is: weighted by it, workers' losses add up to the mean over the samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, SupportsFloat

from .batches import Batch
from .errors import DataError


def weight_of(micro_batch: Any, weight: Callable[[Any], SupportsFloat]) -> float:
    """Return how much a micro-batch counts, by its user's function.

    Raises:
        DataError: the function returned a negative number, infinity or NaN.
    """
    value = float(weight(micro_batch))
    if not 0 <= value < math.inf:
        raise DataError(f"weight(micro_batch) returned {value}: a micro-batch counts 0 or more")
    return value


def total_of(batch: Batch) -> float:
    """Return the weight of the whole global batch, waiting for it where it is still being reduced.

    Raises:
        DataError: it is not positive.
    """
    total = float(batch.global_weight)
    if not total > 0:
        raise DataError(f"the weights of the global batch before {batch.progress} add up to {total}: it has no mean")
    return total


def mean_factor(weight: float, total: float, world_size: int) -> float:
    """Return what to multiply the mean loss of `weight` of `total` samples by.

    The mean over the workers is then the mean over the global batch, however uneven their shares are.
    """
    return weight * world_size / total
