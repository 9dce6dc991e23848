"""Give each worker its share of a DataLoader: no sample twice, none left out, and each as heavy as on one machine.

The unit is what one process with N times the batch size would load: the workers cut each of those batches among them.
Lightning's own sampler repeats samples until all workers have as many, and a mean over workers counts a short share as
a long one.
"""

from __future__ import annotations

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch.utils.data import BatchSampler, IterableDataset, RandomSampler, Sampler, SequentialSampler

from ...adapters import DataError, Worker
from ...adapters.order import GlobalOrder, Indices, part
from ...adapters.torch.strategy import TorchStrategy
from .package import trainer_part


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
    def stand_ins(self) -> int:
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
        self._stand_ins = 0 if self._balanced else max(0, world_size - last)

    def __len__(self) -> int:
        return self._count

    def length(self) -> int:
        return self._length

    def stand_ins(self) -> int:
        return self._stand_ins

    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        order = self._order(epoch)
        starts = list(range(skip, self._length, self.batch_size))
        if self._balanced and len(starts) > 1:
            starts[-1] = (starts[-2] + self._length) // 2
        for start, end in itertools.pairwise([*starts, self._length]):
            batch = order[start:end]
            yield [batch[part(len(batch), rank, self._world_size)] for rank in range(self._world_size)]


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

    def stand_ins(self) -> int:
        return -self._count % self._world_size

    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        drawn = self._batches(epoch)
        for start in range(skip, len(drawn), self._world_size):
            own = list(drawn[start : start + self._world_size])
            yield own + [()] * (self._world_size - len(own))


class ShareSampler(Sampler[Any]):
    """This worker's batches of a plan, as lists of indices; a batch sampler for torch's DataLoader.

    alone: yield single indices, for a DataLoader that makes no batches (`batch_size=None`).
    """

    def __init__(self, plan: Plan, worker: Worker, alone: bool) -> None:
        self.plan = plan
        self.epoch = 0
        self.skip = (0, 0)  # epoch, and how many of its samples are to be left out
        self._worker = worker
        self._alone = alone
        self._shares: Sequence[Share] | Iterator[Share] = ()

    @property
    def sampler(self) -> ShareSampler:
        """Itself: Lightning looks here for whom to tell the epoch."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is."""
        self.epoch = epoch

    def shares(self) -> Iterator[Share]:
        """Begin an iteration: yield its shares, which `iter` then yields the indices of."""
        skip = self.skip[1] if self.epoch == self.skip[0] else 0
        yielded, self._shares = itertools.tee(self._share(parts) for parts in self.plan.batches(self.epoch, skip))
        return yielded

    def __iter__(self) -> Iterator[Any]:
        for share in self._shares:
            yield share.indices[0] if self._alone else list(share.indices)

    def __len__(self) -> int:
        return len(self.plan)

    def _share(self, parts: list[Any]) -> Share:
        own, total = parts[self._worker.rank], sum(len(part) for part in parts)
        if len(own) > 0:
            return Share(tuple(int(index) for index in own), len(own), total)
        first = int(next(part for part in parts if len(part) > 0)[0])
        # Two of it, as BatchNorm refuses to train on a single value.
        return Share((first,) if self._alone else (first, first), 0, total)


class Position(Protocol):
    """How far the training of this epoch is, as its framework counts, in batches."""

    @property
    def batches(self) -> int: ...

    def move(self, batches: int) -> None:
        """Count on from `batches`."""


class ShareLoader:
    """A DataLoader that tells, for each batch it yields, which share of the workers' batch it is; `None` at the end.

    position: of the training that it loads for, which goes into checkpoints; `None` for an evaluation.
    """

    def __init__(
        self,
        loader: Any,
        sampler: ShareSampler,
        tell: Callable[[ShareLoader, Share | None], None],
        position: Position | None = None,
    ) -> None:
        self._loader = loader
        self._share_sampler = sampler
        self._tell = tell
        self._position = position
        self._has_state = False
        self._base = (0, 0)  # batches, and samples, that came before it, in the epoch that it was resumed in
        if position is not None:
            self.state_dict = self._state_dict
            self.load_state_dict = self._load_state_dict

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_loader":
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._share_sampler)

    def __iter__(self) -> Iterator[Any]:
        shares = self._share_sampler.shares()
        try:
            for batch in self._loader:
                self._tell(self, next(shares))
                yield batch
        finally:
            self._tell(self, None)

    def resume(self, epoch: int, samples: int) -> None:
        """Leave out the first `samples` of `epoch`, and have the framework count on from there."""
        plan = self._share_sampler.plan
        if self._position is None or not 0 < samples < plan.length():
            return
        # The rest of the epoch, in batches as they are now; counted from the epoch's end, so that it ends as ever.
        batches = len(plan) - math.ceil((plan.length() - samples) / plan.batch_size)
        self._base = (batches, samples)
        self._share_sampler.skip = (epoch, samples)
        self._position.move(batches)

    def resume_by_count(self, epoch: int) -> None:
        """Where a checkpoint said how many batches were trained on, but not what of, take them for batches of now."""
        if not self._has_state and self._position is not None:
            self.resume(epoch, self._position.batches * self._share_sampler.plan.batch_size)

    def _state_dict(self) -> dict[str, Any]:
        assert self._position is not None
        sampler = self._share_sampler
        batches, samples = self._base if sampler.epoch == sampler.skip[0] else (0, 0)
        samples += (self._position.batches - batches) * sampler.plan.batch_size
        length = sampler.plan.length()
        return {"epoch": sampler.epoch, "samples": min(samples, length), "length": length}

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        self._has_state = True
        length = self._share_sampler.plan.length()
        if state["length"] != length and 0 < state["samples"] < state["length"]:
            raise DataError(
                f"the checkpoint was written in the middle of an epoch of {state['length']} samples, and the training "
                f"data has {length} now: resume with the same data, or from a checkpoint of an epoch's end"
            )
        self.resume(state["epoch"], state["samples"])


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


def rebuild(loader: Any, sampler: ShareSampler, predicting: bool) -> Any:
    """Return a DataLoader like `loader`, of its class, that loads what `sampler` says."""
    utilities = trainer_part("utilities.data")
    alone = loader.batch_sampler is None
    model = copy.copy(loader)
    if not alone:
        # Lightning knows the constructor's arguments, but gives up on batch samplers that it does not know.
        object.__setattr__(model, "batch_sampler", BatchSampler(sampler, 1, drop_last=False))
    arguments, keywords = utilities._get_dataloader_init_args_and_kwargs(model, sampler)
    keywords = {
        **dict(zip(getattr(loader, "__pl_saved_arg_names", ()), arguments, strict=False)),
        **keywords,
        "batch_size": None if alone else 1,
        "sampler": sampler if alone else None,
        "batch_sampler": None if alone else _noting_indices(sampler) if predicting else sampler,
        "shuffle": False,
        "drop_last": False,
    }
    return utilities._reinstantiate_wrapped_cls(loader, **keywords)


def _noting_indices(sampler: ShareSampler) -> Any:
    """Wrap it so that Lightning's prediction writers are told which samples were predicted."""
    return trainer_part("overrides.distributed")._IndexBatchSamplerWrapper(sampler)


def plan_of(loader: Any, worker: Worker, seed: int, share: Callable[[Any], Any], training: bool) -> Plan | None:
    """Return how to share out what a DataLoader loads; `None` for one that has to be left alone.

    Args:
        share: returns rank 0's value on every worker, for samplers that draw at random by themselves.
    """
    sampler, batches = loader.sampler, _unwrapped(loader.batch_sampler)
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


def _order(sampler: Any, seed: int, share: Callable[[Any], Any]) -> Callable[[int], Indices]:
    length = len(sampler)
    if _is_permutation(sampler):
        order = GlobalOrder(length, length, seed, shuffle=type(sampler) is RandomSampler)
        return lambda epoch: order.global_batch(epoch, 0)
    return lambda epoch: np.asarray(share([int(index) for index in _of_epoch(sampler, epoch)]), dtype=np.int64)


def _unwrapped(batch_sampler: Any) -> Any:
    """Return what Lightning has wrapped to note the indices of predictions."""
    return getattr(batch_sampler, "_batch_sampler", batch_sampler)


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
