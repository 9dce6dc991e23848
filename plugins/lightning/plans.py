"""How the samples of an epoch are split among workers: none twice, none left out.

The unit is the batch that one process with N times the batch size would load: the workers split each of these.
Lightning's own sampler instead repeats samples until all workers have equally many, and a mean over workers counts a
short share as much as a long one.
"""

from __future__ import annotations

import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, SequentialSampler

from ...adapters import DataError, OptionError, Worker
from ...adapters.order import GlobalOrder, Indices, slice_of
from ...adapters.torch.strategy import TorchStrategy
from .compat import without_notes


@dataclass(frozen=True)
class Share:
    """One worker's share of one batch of all workers.

    indices: its samples; never empty.
    weight: how many of them count: all, or 0 if they are placeholders for an empty share.
    total: how many samples the batch has over all workers.
    """

    indices: tuple[int, ...]
    weight: int
    total: int


class Plan(ABC):
    """The batches of an epoch, over all workers. A full one has `batch_size` samples."""

    batch_size: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""

    @abstractmethod
    def length(self) -> int:
        """Return the number of samples of a whole epoch."""

    @abstractmethod
    def placeholders(self) -> int:
        """Return how many workers have no samples in the last batch of an epoch."""

    @abstractmethod
    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        """Yield the batches after the first `skip` samples, each as a list of the workers' samples."""


class SamplePlan(Plan):
    """Samples in the order of `order(epoch)`, split into batches of `batch_size`, and those among the workers.

    balance: even out the last two batches if the last has fewer samples than workers, so that no worker has none.
    """

    def __init__(
        self,
        order: Callable[[int], Indices],
        length: int,
        batch_size: int,
        world_size: int,
        drop_last: bool,
        balance: bool,
    ) -> None:
        self.batch_size = batch_size
        self._order = order
        self._world_size = world_size
        whole = length // batch_size
        self._count = whole if drop_last else math.ceil(length / batch_size)
        self._length = whole * batch_size if drop_last else length
        last = self._length - (self._count - 1) * batch_size if self._count else world_size
        self._balanced = balance and last < world_size and self._count > 1 and batch_size + last >= 2 * world_size
        self._placeholders = 0 if self._balanced else max(0, world_size - last)

    def __len__(self) -> int:
        return self._count

    def length(self) -> int:
        return self._length

    def placeholders(self) -> int:
        return self._placeholders

    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        order = self._order(epoch)
        starts = list(range(skip, self._length, self.batch_size))
        if self._balanced and len(starts) > 1:
            starts[-1] = (starts[-2] + self._length) // 2
        for start, end in itertools.pairwise([*starts, self._length]):
            batch = order[start:end]
            yield [batch[slice_of(len(batch), rank, self._world_size)] for rank in range(self._world_size)]


class BatchPlan(Plan):
    """Batches of a user's batch sampler: each worker takes every N-th of them."""

    def __init__(self, batches: Callable[[int], Sequence[Sequence[int]]], count: int, world_size: int) -> None:
        self.batch_size = world_size  # here a sample is one batch of the sampler
        self._batches = batches
        self._world_size = world_size
        self._count = count

    def __len__(self) -> int:
        return math.ceil(self._count / self._world_size)

    def length(self) -> int:
        return self._count

    def placeholders(self) -> int:
        return -self._count % self._world_size

    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        drawn = self._batches(epoch)
        for start in range(skip, len(drawn), self._world_size):
            own = list(drawn[start : start + self._world_size])
            yield own + [()] * (self._world_size - len(own))


def plan_of(loader: Any, worker: Worker, seed: int, broadcast: Callable[[Any], Any], training: bool) -> Plan | None:
    """Return how to split what a DataLoader loads; `None` for one that must stay as it is.

    Args:
        broadcast: returns rank 0's value on every worker, for samplers with their own random numbers.

    Raises:
        OptionError: its batches come in another order than the sampler's, so their sizes are unknown.
    """
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise OptionError(
            "DataLoader(in_order=False) yields batches as its processes finish them, so a batch's size would be "
            "unknown: leave in_order out"
        )
    sampler, batches = loader.sampler, without_notes(loader.batch_sampler)
    if isinstance(loader.dataset, IterableDataset) or _shares_by_itself(sampler) or _shares_by_itself(batches):
        return None
    if batches is not None and type(batches) is not BatchSampler:

        def draw(epoch: int) -> Sequence[Sequence[int]]:
            drawn: Sequence[Sequence[int]] = broadcast([[int(i) for i in batch] for batch in _of_epoch(batches, epoch)])
            return drawn

        return BatchPlan(draw, len(batches), worker.world_size)
    size = (1 if batches is None else batches.batch_size) * worker.world_size
    drop_last = batches is not None and bool(batches.drop_last)
    return SamplePlan(_order(sampler, seed, broadcast), len(sampler), size, worker.world_size, drop_last, not training)


def order_seed(adapter: TorchStrategy) -> int:
    """Return the seed of shuffled orders: that of `seed_everything` on rank 0, as other workers' may differ."""
    seed: int = adapter.broadcast(int(os.environ.get("PL_GLOBAL_SEED", 0)))
    return seed


def _order(sampler: Any, seed: int, broadcast: Callable[[Any], Any]) -> Callable[[int], Indices]:
    length = len(sampler)
    if length == 0:
        return lambda epoch: np.zeros(0, dtype=np.int64)
    if _is_permutation(sampler):
        order = GlobalOrder(length, length, seed, shuffle=type(sampler) is RandomSampler)
        return lambda epoch: order.global_batch(epoch, 0)
    return lambda epoch: np.asarray(broadcast([int(index) for index in _of_epoch(sampler, epoch)]), dtype=np.int64)


def _of_epoch(sampler: Any, epoch: int) -> Any:
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    return sampler


def _shares_by_itself(sampler: Any) -> bool:
    return hasattr(sampler, "rank") and (hasattr(sampler, "num_replicas") or hasattr(sampler, "world_size"))


def _is_permutation(sampler: Any) -> bool:
    """Whether the sampler is torch's own, and yields each sample once, in order or shuffled: ours then replaces it."""
    if type(sampler) is SequentialSampler:
        return True
    return type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(sampler.data_source)


def refuse_different_plans(plan: Plan, adapter: TorchStrategy) -> None:
    """Compare the workers' plans.

    Raises:
        DataError: the sizes differ, so the datasets do too.
    """
    sizes = adapter.gather((plan.length(), plan.batch_size))
    if len(set(sizes)) > 1:
        found = ", ".join(f"{length} in batches of {size} over all" for length, size in sizes)
        raise DataError(
            f"the workers' DataLoaders have different numbers of samples ({found}): give all the whole dataset, which "
            "is split for you, or pass use_distributed_sampler=False"
        )
