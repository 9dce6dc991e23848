"""The order of samples for the references, implemented again from its definition (`farandole.adapters.order`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .variants import GLOBAL_BATCH, SEED, STEPS


def rows_of_epoch(length: int, epoch: int) -> np.ndarray[Any, Any]:
    """Return the rows of a dataset in the order of an epoch."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence([SEED, epoch]))).permutation(length)


def rows_of_steps(length: int) -> Iterator[np.ndarray[Any, Any]]:
    """Yield the rows of the dataset for each step of a curve."""
    step = epoch = 0
    while step < STEPS:
        order = rows_of_epoch(length, epoch)
        for first in range(0, length, GLOBAL_BATCH):
            yield order[first : first + GLOBAL_BATCH]
            step += 1
        epoch += 1
    assert step == STEPS, "epochs of every variant divide the number of steps"
