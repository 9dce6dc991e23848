"""A worker's share of a global batch inside a compiled step, and a check that all workers see the same batch."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from ...adapters.errors import DataError
from ...adapters.tensorflow.pipeline import batch_size_of
from ...adapters.tensorflow.step import with_samples
from ...adapters.worker import Worker

OTHER_ORDER = (
    "workers see different samples in the same global batch, so that some would come twice and others never: give "
    "every worker the same data in the same order (shuffle with a seed; do not shard it: fit does that)"
)
_KERAS_BATCH = 32  # Keras's own batch_size
_HASHES = 256  # squares of 256 workers add up exactly in float32; a collision is unlikely to repeat in the next batch


class Rows(NamedTuple):
    """This worker's share of a global batch.

    data: its rows; a placeholder row if it has none.
    fraction: its fraction of the batch, from 0 to 1, float64.
    count: how many rows it has, int64.
    """

    data: Any
    fraction: tf.Tensor
    count: tf.Tensor


def own_rows(data: Any, worker: Worker) -> Rows:
    """Take this worker's rows of a global batch, as `farandole.adapters.order.slice_of` does."""
    total = tf.shape(_first(data), out_type=tf.int64)[0]
    size, extra = total // worker.world_size, total % worker.world_size
    start = worker.rank * size + tf.minimum(tf.constant(worker.rank, tf.int64), extra)
    count = size + tf.cast(worker.rank < extra, tf.int64)
    begin = tf.where(count > 0, start, 0)
    end = tf.where(count > 0, start + count, 1)
    rows = keras.tree.map_structure(lambda leaf: None if leaf is None else _rows(leaf, begin, end), data)
    return Rows(rows, tf.cast(count, tf.float64) / tf.cast(total, tf.float64), count)


def fingerprint(data: Any) -> tf.Tensor:
    """Return a hash of the first and last sample of a batch: 0 to 255, float64."""
    texts = [
        tf.io.serialize_tensor(_dense(leaf[end]))
        for leaf in keras.tree.flatten(data)
        if leaf is not None
        for end in (0, -1)
    ]
    return tf.cast(tf.strings.to_hash_bucket_fast(tf.strings.join(texts), _HASHES), tf.float64)


def check_size(what: str, data: Any, steps: int | None, option: str) -> None:
    """Raise `DataError` if the number of batches of an epoch is unknown."""
    if steps is not None:
        return
    if isinstance(data, Generator):
        raise DataError(
            f"{what} is a generator of unknown size, so workers cannot agree where an epoch ends: pass {option}, or a "
            "keras.utils.PyDataset"
        )
    if isinstance(data, tf.data.Dataset) and int(data.cardinality()) < 0:
        kind = "infinite" if int(data.cardinality()) == tf.data.INFINITE_CARDINALITY else "unknown"
        raise DataError(
            f"{what} is a tf.data.Dataset of {kind} size, so workers cannot agree where an epoch ends: pass {option}, "
            "or give its size with .apply(tf.data.experimental.assert_cardinality(n))"
        )


def rows_of_batches(data: Any, batch_size: int | None) -> int | None:
    """Return the number of samples in the global batches of `fit`; `None` if it is not known before they are read."""
    if isinstance(data, tf.data.Dataset):
        return batch_size_of(data)
    if isinstance(data, keras.utils.PyDataset):
        return int(_first(data[0]).shape[0])
    lengths = [leaf.shape[0] for leaf in keras.tree.flatten(data) if hasattr(leaf, "shape")]
    return min(batch_size or _KERAS_BATCH, int(lengths[0])) if lengths else None


def specs_of_share(specs: Any, rows: int | None, worker: Worker) -> Any:
    """Return the specs of the largest share of a global batch of `rows` samples."""
    share = None if rows is None else -(-rows // worker.world_size)

    def of(spec: Any) -> Any:
        return with_samples(spec, share) if hasattr(spec, "dtype") else None  # an optional input

    return keras.tree.map_structure(of, specs)


def _first(data: Any) -> Any:
    return next(leaf for leaf in keras.tree.flatten(data) if leaf is not None)


def _rows(leaf: Any, begin: tf.Tensor, end: tf.Tensor) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        raise DataError("a sparse tensor cannot be split by rows: make it dense, or pass it as a RaggedTensor")
    rows = leaf[begin:end]
    if isinstance(leaf, tf.Tensor):
        rows.set_shape([None, *leaf.shape[1:]])
    return rows


def _dense(sample: Any) -> tf.Tensor:
    return sample.to_tensor() if isinstance(sample, tf.RaggedTensor) else sample
