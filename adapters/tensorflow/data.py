"""Turn arrays or a `tf.data.Dataset` into this worker's micro-batches."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf

from ..batches import Batch
from ..errors import DataError, OptionError
from ..order import GlobalOrder, slice_of
from ..progress import Progress
from ..random_seed import mix
from ..structure import map_structure
from ..worker import Worker
from .pipeline import batch_size_of, check_order, reshuffles
from .step import Spec, spec_of

_PLACEHOLDER = (0, 0)  # rows of a global batch for an empty share: two, as in `order.MicroBatch`


class StepData(ABC):
    """A dataset in global batches; `spec` describes its micro-batches."""

    spec: Spec

    def __init__(self, order: GlobalOrder, worker: Worker, accumulate: int) -> None:
        self._order = order
        self._worker = worker
        self._accumulate = accumulate

    def __str__(self) -> str:
        """What must be the same on all workers, or their steps do not match."""
        order = self._order
        return f"{order.length} samples ({order.steps_per_epoch} steps an epoch), each of {self.spec}"

    @abstractmethod
    def steps(self, start: Progress, epochs: int) -> Iterator[Batch]:
        """Yield this worker's share of each step, weighted by samples."""

    def remaining(self, start: Progress, epochs: int) -> int:
        """Return the number of steps that `steps` yields; see `GlobalOrder.remaining`."""
        return self._order.remaining(start, epochs)

    def _batch(self, at: tuple[int, int, int], micro: Any, weights: Any, rows: int) -> Batch:
        epoch, step, loop = at
        seed = mix(self._order.seed, epoch, step, self._worker.rank)
        share = -(-rows // self._worker.world_size)  # of the first workers
        return Batch(
            tuple(micro),
            tuple(map(float, weights)),
            float(rows),
            self._order.after(epoch, step, loop),
            seed,
            largest=-(-share // self._accumulate),
        )


def step_data(
    dataset: Any,
    global_batch_size: int,
    seed: int,
    shuffle: bool,
    worker: Worker,
    accumulate: int,
    options: Mapping[str, Any],
) -> StepData:
    """Return the steps of a dataset.

    Raises:
        DataError: it has no known length, no common order on all workers, or is of another kind.
        OptionError: an unknown option, or a dataset batched by another number than `global_batch_size`.
    """
    for option in options:
        raise OptionError(f"a TensorFlow strategy has no option {option!r} for loading data")
    if isinstance(dataset, tf.data.Dataset):
        return _Pipeline(dataset, global_batch_size, seed, worker, accumulate)
    columns = _columns(dataset)
    if columns is None:
        raise DataError(
            f"a {type(dataset).__name__} has no length, or no common order on all workers: pass arrays, tensors "
            "(alone, or in a tuple or dict), or a tf.data.Dataset of known cardinality"
        )
    lengths: list[int] = []
    map_structure(lambda column: lengths.append(len(column)), columns)
    if len(set(lengths)) != 1:
        raise DataError(f"the arrays of the dataset differ in length: {', '.join(map(str, lengths))}")
    return _Arrays(columns, GlobalOrder(lengths[0], global_batch_size, seed, shuffle), worker, accumulate)


class _Arrays(StepData):
    """Arrays whose first dimension counts samples, in the order that `GlobalOrder` defines."""

    def __init__(self, columns: Any, order: GlobalOrder, worker: Worker, accumulate: int) -> None:
        super().__init__(order, worker, accumulate)
        self._columns = columns
        self.spec = spec_of(self._take(np.arange(1)))

    def steps(self, start: Progress, epochs: int) -> Iterator[Batch]:
        for epoch, step in self._order.positions(start, epochs):
            plan = self._order.micro_batches(epoch, step, self._worker, self._accumulate)
            micro = (self._take(np.array(micro_batch.indices)) for micro_batch in plan)
            weights = (micro_batch.weight for micro_batch in plan)
            yield self._batch((epoch, step, start.loop), micro, weights, self._order.size(step))

    def _take(self, indices: np.ndarray[Any, Any]) -> Any:
        return map_structure(lambda column: tf.convert_to_tensor(column[indices]), self._columns)


class _Pipeline(StepData):
    """A `tf.data.Dataset`, in its own order; every worker reads all of it and trains on its share of each batch."""

    def __init__(
        self, dataset: tf.data.Dataset, global_batch_size: int, seed: int, worker: Worker, accumulate: int
    ) -> None:
        cardinality = int(dataset.cardinality())
        if cardinality < 0:
            kind = "infinite" if cardinality == tf.data.INFINITE_CARDINALITY else "unknown"
            raise DataError(
                f"the tf.data.Dataset has {kind} cardinality, so its epochs have no end that all workers agree on: "
                "take(n) elements of it, or give their number with "
                ".apply(tf.data.experimental.assert_cardinality(n))"
            )
        check_order(dataset)
        found = batch_size_of(dataset)
        if found not in (None, global_batch_size):
            raise OptionError(
                f"the tf.data.Dataset is batched by {found}, but a global batch has {global_batch_size} samples: batch "
                "it by the global batch of all workers, or leave it unbatched"
            )
        # A batched dataset does not say how many samples it has; only its number of steps matters.
        length = cardinality if found is None else cardinality * global_batch_size
        super().__init__(GlobalOrder(length, global_batch_size, seed, shuffle=False), worker, accumulate)
        options = tf.data.Options()
        options.deterministic = True
        self._dataset = dataset.with_options(options)
        self._batches = (self._dataset if found else self._dataset.batch(global_batch_size)).prefetch(2)
        self._iterations = _Iterations.of(dataset)
        self.spec = tf.nest.map_structure(_spec, self._batches.element_spec)

    def steps(self, start: Progress, epochs: int) -> Iterator[Batch]:
        iterator: Any = None
        for epoch, step in self._order.positions(start, epochs):
            if iterator is None or step == 0:
                batches = self._batches if step == 0 else self._batches.skip(step)
                iterator = self._iterations.start(epoch, self._dataset, batches)
            batch = next(iterator)
            rows = int(tf.shape(tf.nest.flatten(batch)[0])[0])
            own = slice_of(rows, self._worker.rank, self._worker.world_size)
            slices = [slice_of(own.stop - own.start, number, self._accumulate) for number in range(self._accumulate)]
            bounds = [(own.start + micro.start, own.start + micro.stop) for micro in slices]
            micro = [tf.nest.map_structure(lambda leaf, s=s, e=e: _rows(leaf, s, e), batch) for s, e in bounds]
            yield self._batch((epoch, step, start.loop), micro, (end - begin for begin, end in bounds), rows)


class _Iterations:
    """Counts iterations of a dataset that reshuffles: its e-th iteration is epoch e."""

    _known: ClassVar[weakref.WeakKeyDictionary[tf.data.Dataset, _Iterations]] = weakref.WeakKeyDictionary()

    def __init__(self, reshuffles: bool) -> None:
        self._reshuffles = reshuffles
        self._begun = 0

    @classmethod
    def of(cls, dataset: tf.data.Dataset) -> _Iterations:
        return cls._known.setdefault(dataset, cls(reshuffles(dataset)))

    def start(self, epoch: int, dataset: tf.data.Dataset, batches: tf.data.Dataset) -> Any:
        """Return an iterator over `batches`, made of `dataset`, in the order of an epoch."""
        if not self._reshuffles:
            return iter(batches)
        if epoch < self._begun:
            raise DataError(
                f"the tf.data.Dataset reshuffles and was iterated {self._begun} times, so epoch {epoch} cannot be "
                "repeated: build it anew, or pass reshuffle_each_iteration=False to shuffle()"
            )
        while self._begun < epoch:
            next(iter(dataset), None)
            self._begun += 1
        self._begun += 1
        return iter(batches)


def _spec(spec: Any) -> Any:
    return tf.TensorSpec([None, *spec.shape[1:]], spec.dtype) if isinstance(spec, tf.TensorSpec) else spec


def _rows(leaf: Any, start: int, stop: int) -> Any:
    if isinstance(leaf, tf.SparseTensor):
        raise DataError("a sparse tensor of a tf.data.Dataset cannot be split by rows: map it to a dense one")
    return leaf[start:stop] if stop > start else tf.gather(leaf, _PLACEHOLDER)


def _columns(dataset: Any) -> Any:
    """Return `dataset` as a structure of NumPy arrays if it is made of arrays and tensors, else `None`.

    Raises:
        DataError: an array has no dimension of samples.
    """
    if isinstance(dataset, (np.ndarray, tf.Tensor)):
        return _column(dataset)
    if not isinstance(dataset, (Mapping, tuple)):
        return None
    parts = list(dataset.values() if isinstance(dataset, Mapping) else dataset)
    others = [entry for entry in parts if not isinstance(entry, (np.ndarray, tf.Tensor))]
    if others or not parts:
        return None
    return map_structure(_column, dataset)


def _column(values: Any) -> np.ndarray[Any, Any]:
    array = values.numpy() if isinstance(values, tf.Tensor) else values
    if array.ndim == 0:
        raise DataError("an array of the dataset is a single number: it has no dimension that counts samples")
    return np.asarray(array)
