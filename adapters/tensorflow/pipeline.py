"""Inspect how a `tf.data.Dataset` was built: whether it is batched, and has the same order on all workers."""

from __future__ import annotations

from collections.abc import Iterator

import tensorflow as tf

from ..errors import DataError
from . import compat


def stages(dataset: tf.data.Dataset) -> Iterator[tf.data.Dataset]:
    """Yield a dataset and all datasets that it was built from."""
    yield dataset
    for source in compat.Stage(dataset).inputs():
        yield from stages(source)


def batch_size_of(dataset: tf.data.Dataset) -> int | None:
    """Return the number of samples in an element; `None` if an element is a sample."""
    for stage in stages(dataset):
        if "Unbatch" in type(stage).__name__:
            return None
        size = compat.batch_size_of(stage)
        if size is not None:
            return size
    return None


def check_order(dataset: tf.data.Dataset) -> None:
    """Raise `DataError` if the order of samples would differ between workers."""
    for stage in stages(dataset):
        if compat.shuffles_without_seed(stage):
            raise DataError(
                "the tf.data.Dataset shuffles without a seed, so every worker would see another order, and samples "
                "would come twice or never: pass shuffle(..., seed=...)"
            )


def reshuffles(dataset: tf.data.Dataset) -> bool:
    """Whether each iteration has another order; a cache after the shuffle prevents that."""
    if "Cache" in type(dataset).__name__:
        return False
    return compat.reshuffles(dataset) or any(map(reshuffles, compat.Stage(dataset).inputs()))
