"""How the samples of an epoch are cut among workers: none twice, none left out.

The unit is what one process with N times the batch size would load: the workers cut each of those batches among them.
Lightning's own sampler repeats samples until all workers have as many, and a mean over workers counts a short share as
a long one.
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
    """One worker's part of one batch of all workers.

    indices: its samples; never empty.
    weight: how many of them count: all, or 0 where they stand in for an empty share.
    total: how many samples the batch has over all workers.
    """

    indices: tuple[int, ...]
    weight: int
    total: int


class Plan(ABC):
    """The batches of an epoch, over all workers. `batch_size` samples are in a full one."""

    batch_size: int

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""

    @abstractmethod
    def length(self) -> int:
        """Return the number of samples of a whole epoch."""

    @abstractmethod
    def placeholders(self) -> int:
        """Return how many workers have no samples of the last batch of an epoch."""

    @abstractmethod
    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        """Yield the batches after the first `skip` samples, each as a list of the workers' parts."""


class SamplePlan(Plan):
    """Samples in the order that `order(epoch)` gives, cut into batches of `batch_size`, and those among the workers.

    balance: even out the last two batches where the last has fewer samples than workers, so that nobody has none.
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
    """Batches that a batch sampler of the user's makes: each worker takes every N-th of them."""

    def __init__(self, batches: Callable[[int], Sequence[Sequence[int]]], count: int, world_size: int) -> None:
        self.batch_size = world_size  # its unit, and what a position counts, is one batch of the sampler's
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


def plan_of(loader: Any, worker: Worker, seed: int, share: Callable[[Any], Any], training: bool) -> Plan | None:
    """Return how to share out what a DataLoader loads; `None` for one that has to be left alone.

    Args:
        share: returns rank 0's value on every worker, for samplers that draw at random by themselves.

    Raises:
        OptionError: its batches come in another order than the sampler's, and could not be told apart.
    """
    if loader.num_workers > 0 and not getattr(loader, "in_order", True):
        raise OptionError(
            "DataLoader(in_order=False) yields batches as its processes finish them, so that workers would weigh them "
            "by the size of others: leave in_order out"
        )
    sampler, batches = loader.sampler, without_notes(loader.batch_sampler)
    if isinstance(loader.dataset, IterableDataset) or _shares_by_itself(sampler) or _shares_by_itself(batches):
        return None
    if batches is not None and type(batches) is not BatchSampler:

        def draw(epoch: int) -> Sequence[Sequence[int]]:
            drawn: Sequence[Sequence[int]] = share([[int(i) for i in batch] for batch in _of_epoch(batches, epoch)])
            return drawn

        return BatchPlan(draw, len(batches), worker.world_size)
    size = (1 if batches is None else batches.batch_size) * worker.world_size
    drop_last = batches is not None and bool(batches.drop_last)
    return SamplePlan(_order(sampler, seed, share), len(sampler), size, worker.world_size, drop_last, not training)


def order_seed(adapter: TorchStrategy) -> int:
    """Return the seed of shuffled orders: that of `seed_everything` on rank 0; others may have called it otherwise."""
    seed: int = adapter.broadcast(int(os.environ.get("PL_GLOBAL_SEED", 0)))
    return seed


def _order(sampler: Any, seed: int, share: Callable[[Any], Any]) -> Callable[[int], Indices]:
    length = len(sampler)
    if length == 0:
        return lambda epoch: np.zeros(0, dtype=np.int64)
    if _is_permutation(sampler):
        order = GlobalOrder(length, length, seed, shuffle=type(sampler) is RandomSampler)
        return lambda epoch: order.global_batch(epoch, 0)
    return lambda epoch: np.asarray(share([int(index) for index in _of_epoch(sampler, epoch)]), dtype=np.int64)


def _of_epoch(sampler: Any, epoch: int) -> Any:
    if hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)
    return sampler


def _shares_by_itself(sampler: Any) -> bool:
    return hasattr(sampler, "rank") and (hasattr(sampler, "num_replicas") or hasattr(sampler, "world_size"))


def _is_permutation(sampler: Any) -> bool:
    """Whether the sampler is torch's own, in order or at random, over each sample once: ours takes its place."""
    if type(sampler) is SequentialSampler:
        return True
    return type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == len(sampler.data_source)


def refuse_different_plans(plan: Plan, adapter: TorchStrategy) -> None:
    """Compare what the workers are to share out.

    Raises:
        DataError: it is not of one size, so that it is not one dataset.
    """
    sizes = adapter.gather((plan.length(), plan.batch_size))
    if len(set(sizes)) > 1:
        told = ", ".join(f"{length} in batches of {size} over all" for length, size in sizes)
        raise DataError(
            f"the workers' DataLoaders have different numbers of samples ({told}): give all workers the whole dataset, "
            "which is shared out for you, or pass use_distributed_sampler=False"
        )
