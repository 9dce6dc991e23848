"""Turn a dataset into this worker's micro-batches, on torch's DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, TensorDataset, default_collate

from ..errors import DataError, OptionError
from ..order import GlobalOrder, MicroBatch
from ..progress import Progress
from ..structure import map_structure
from ..worker import Worker
from .draws import seed_draws, streams_kept
from .loader_processes import data_is_sent, spawn_where_it_would_fork

_OURS = {
    "batch_size": "global_batch_size",
    "batch_sampler": "the size of a global batch",
    "sampler": "seed and shuffle",
    "drop_last": "nothing, a short last batch is weighted exactly",
    "generator": "seed",
    "in_order": "nothing, micro-batches must come in the order of their weights",
}

Key = tuple[int, tuple[int, ...]]


def order_of(dataset: Any, global_batch_size: int, seed: int, shuffle: bool) -> GlobalOrder:
    """Return the order of `dataset` in global batches.

    Raises:
        DataError: it has no length, or length 0.
    """
    if isinstance(dataset, (DataLoader, Sampler)):
        kind, instead = type(dataset).__name__, "the dataset itself"
        if isinstance(dataset, DataLoader):
            instead = "loader.dataset, and num_workers, collate_fn and the like as keywords"
        raise DataError(f"the dataset is split into batches and shares here, so it cannot be a {kind}: pass {instead}")
    if _columns(dataset) is None and not (hasattr(dataset, "__len__") and _has_samples(dataset)):
        lacks = "access by index" if hasattr(dataset, "__len__") else "length"
        raise DataError(
            f"{type(dataset).__name__} has no {lacks}, so its samples have no reproducible order: "
            "pass a dataset with __len__ and __getitem__ (list(it) has both), tensors, or arrays"
        )
    return GlobalOrder(_length(dataset), global_batch_size, seed, shuffle)


class StepLoader:
    """Loads this worker's micro-batches, step by step.

    Iterating yields (epoch, step, weights, data): the weight of each micro-batch, and its collated data. Loader
    processes are forked if DataLoader would and `may_fork` is true, or if the options say so.

    Raises:
        OptionError: a loader option that `batches` sets itself, or that DataLoader does not know.
    """

    def __init__(
        self,
        dataset: Any,
        order: GlobalOrder,
        worker: Worker,
        accumulate: int,
        start: Progress,
        epochs: int,
        options: Mapping[str, Any],
        may_fork: bool = True,
    ) -> None:
        for name in options:
            if name in _OURS:
                raise OptionError(f"{name!r} is set here, the same on all workers: use {_OURS[name]}")
        self._keys = _Keys(order, worker, accumulate, start, epochs)
        columns = _columns(dataset)
        fetch: Dataset[Any]
        if columns is None:
            options = dict(options)
            fetch = _Samples(dataset, order.seed, options.pop("collate_fn", None) or default_collate)
        elif "collate_fn" in options:
            raise OptionError("collate_fn needs a dataset of samples; tensors and arrays are sliced, not collated")
        else:
            fetch = _Columns(columns)
        try:
            self._loader = DataLoader(
                fetch,
                batch_size=None,
                sampler=self._keys,
                collate_fn=_unchanged,
                # Its own stream: DataLoader would draw from the global one, which belongs to the model.
                generator=torch.Generator().manual_seed(order.seed),
                **options,
            )
        except (TypeError, ValueError) as error:
            raise OptionError(f"torch's DataLoader refuses an option: {error}") from None
        if not may_fork:
            spawn_where_it_would_fork(self._loader)

    def __iter__(self) -> Iterator[tuple[int, int, tuple[int, ...], tuple[Any, ...]]]:
        with data_is_sent(self._loader):
            data = iter(self._loader)
        for epoch, step, plan in self._keys.steps():
            yield epoch, step, tuple(micro_batch.weight for micro_batch in plan), tuple(next(data) for _ in plan)


class _Keys(Sampler[Key]):
    """The (epoch, indices) of each micro-batch of this worker, in the order in which it trains on them."""

    def __init__(self, order: GlobalOrder, worker: Worker, accumulate: int, start: Progress, epochs: int) -> None:
        self._order = order
        self._share = (worker, accumulate)
        self._span = (start, epochs)

    def steps(self) -> Iterator[tuple[int, int, tuple[MicroBatch, ...]]]:
        """Yield (epoch, step, this worker's micro-batches)."""
        for epoch, step in self._order.positions(*self._span):
            yield epoch, step, self._order.micro_batches(epoch, step, *self._share)

    def __iter__(self) -> Iterator[Key]:
        for epoch, _, plan in self.steps():
            for micro_batch in plan:
                yield epoch, micro_batch.indices


class _Columns(Dataset[Any]):
    """Tensors or arrays whose first dimension counts samples: a micro-batch is one slice of each."""

    def __init__(self, columns: Any) -> None:
        self._columns = columns

    def __getitem__(self, key: Key) -> Any:
        indices = torch.tensor(key[1])
        return map_structure(lambda column: column[indices], self._columns)


class _Samples(Dataset[Any]):
    """A map-style dataset; its random numbers depend on (seed, epoch, sample)."""

    def __init__(self, dataset: Any, seed: int, collate: Callable[[list[Any]], Any]) -> None:
        self._dataset = dataset
        self._seed = seed
        self._collate = collate

    def __getitem__(self, key: Key) -> Any:
        epoch, indices = key
        samples = []
        with streams_kept():
            for index in indices:
                seed_draws(self._seed, epoch, index)
                samples.append(self._dataset[index])
            return self._collate(samples)


def _columns(dataset: Any) -> Any:
    """Return `dataset` as a structure of tensors if it is made of tensors and arrays, else `None`.

    Raises:
        DataError: it mixes them with other objects, or an array has no dimension of samples.
    """
    if isinstance(dataset, TensorDataset):
        return tuple(dataset.tensors)
    if isinstance(dataset, (torch.Tensor, np.ndarray)):
        return _column(dataset)
    if not isinstance(dataset, (Mapping, tuple)):
        return None
    parts = list(dataset.values() if isinstance(dataset, Mapping) else dataset)
    others = [part for part in parts if not isinstance(part, (torch.Tensor, np.ndarray))]
    if others and (isinstance(dataset, Mapping) or len(others) < len(parts)):
        raise DataError(
            f"a {type(dataset).__name__} as dataset must hold tensors or arrays only, but this one has a "
            f"{type(others[0]).__name__}: make it an array, or pass a dataset with __len__ and __getitem__"
        )
    return None if others or not parts else map_structure(_column, dataset)


def _column(values: torch.Tensor | np.ndarray[Any, Any]) -> torch.Tensor:
    try:
        column = torch.as_tensor(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"an array of the dataset cannot become a tensor: {str(error).splitlines()[0]}") from None
    if column.ndim == 0:
        raise DataError("an array of the dataset is a single number: it has no dimension that counts samples")
    return column


def _has_samples(dataset: Any) -> bool:
    """Whether samples can be read by number; torch's Dataset defines the method only to be overridden."""
    method = getattr(type(dataset), "__getitem__", None)
    return method is not None and method is not Dataset.__getitem__


def _length(dataset: Any) -> int:
    columns = _columns(dataset)
    if columns is None:
        return len(dataset)
    lengths: list[int] = []
    map_structure(lambda column: lengths.append(len(column)), columns)
    if len(set(lengths)) != 1:
        raise DataError(f"the arrays of the dataset differ in length: {', '.join(map(str, lengths))}")
    return lengths[0]


def _unchanged(data: Any) -> Any:
    return data


def to_device(data: Any, device: torch.device) -> Any:
    """Move all tensors of a structure to `device`."""
    if device.type == "cpu":
        return data
    return map_structure(
        lambda leaf: leaf.to(device, non_blocking=True) if isinstance(leaf, torch.Tensor) else leaf, data
    )
