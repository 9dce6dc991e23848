"""Load a worker's shares of a plan with the user's own DataLoader, and report each batch's weight."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from torch.utils.data import BatchSampler, Sampler

from ...adapters import DataError, Worker
from .compat import construct_like, constructor_arguments, noting_indices
from .draws import SeededIndices, draws_nothing, seed_dataset
from .in_place_of import InPlaceOf
from .plans import Plan, Share


class ShareSampler(Sampler[Any]):
    """This worker's batches of a plan, as lists of indices; a batch sampler for torch's DataLoader.

    alone: yield single indices, for a DataLoader without batches (`batch_size=None`).
    seed: of the dataset's random numbers; `None` if it draws none. With one, all indices are `SeededIndices`.
    """

    def __init__(self, plan: Plan, worker: Worker, alone: bool, seed: int | None) -> None:
        self.plan = plan
        self.epoch = 0
        self.skip = (0, 0)  # epoch, and how many of its first samples to skip
        self._worker = worker
        self._alone = alone
        self._seed = seed
        self._shares: Sequence[Share] | Iterator[Share] = ()

    @property
    def sampler(self) -> ShareSampler:
        """Itself: Lightning calls `set_epoch` of this."""
        return self

    @property
    def seeds(self) -> bool:
        """Whether it yields `SeededIndices`."""
        return self._seed is not None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def shares(self) -> Iterator[Share]:
        """Begin an iteration: yield its shares, whose indices `iter` then yields."""
        skip = self.skip[1] if self.epoch == self.skip[0] else 0
        yielded, self._shares = itertools.tee(self._share(parts) for parts in self.plan.batches(self.epoch, skip))
        return yielded

    def __iter__(self) -> Iterator[Any]:
        epoch = self.epoch
        for share in self._shares:
            if self._seed is not None:
                yield SeededIndices(share.indices[:1] if self._alone else share.indices, self._seed, epoch)
            else:
                yield share.indices[0] if self._alone else list(share.indices)

    def __len__(self) -> int:
        return len(self.plan)

    def _share(self, parts: list[Any]) -> Share:
        own, total = parts[self._worker.rank], sum(len(part) for part in parts)
        if len(own) > 0:
            return Share(tuple(int(index) for index in own), len(own), total)
        first = int(next(part for part in parts if len(part) > 0)[0])
        # Twice, because BatchNorm refuses to train on a single value.
        return Share((first,) if self._alone else (first, first), 0, total)


def sampler_of(loader: Any, plan: Plan, worker: Worker, seed: int) -> ShareSampler:
    """Return the sampler of this worker's samples in a plan, for a user's DataLoader."""
    return ShareSampler(plan, worker, loader.batch_sampler is None, None if draws_nothing(loader.dataset) else seed)


class Position(Protocol):
    """How many batches of this epoch were trained on, as its framework counts."""

    @property
    def batches(self) -> int: ...

    def move(self, batches: int) -> None:
        """Continue to count from `batches`."""


class ShareLoader(InPlaceOf):
    """A DataLoader that reports, for each batch it yields, its share of the workers' batch; `None` at the end.

    given: the user's DataLoader, from which `loader` was built.
    position: in the training that it loads for, stored in checkpoints; `None` for an evaluation.
    timed: yields what is loaded, and times the wait for it.
    """

    def __init__(
        self,
        given: Any,
        loader: Any,
        sampler: ShareSampler,
        tell: Callable[[ShareLoader, Share | None], None],
        position: Position | None = None,
        timed: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    ) -> None:
        super().__init__(given, loader)
        self.dataset = given.dataset
        self._timed = timed
        self._share_sampler = sampler
        self._tell = tell
        self._position = position
        self._has_state = False
        self._base = (0, 0)  # batches and samples trained on before, in the resumed epoch
        if position is not None:
            self.state_dict = self._state_dict
            self.load_state_dict = self._load_state_dict

    def __len__(self) -> int:
        return len(self._share_sampler)

    def __iter__(self) -> Iterator[Any]:
        shares = self._share_sampler.shares()
        try:
            for batch in self._timed(self._loader):
                self._tell(self, next(shares))
                yield batch
        finally:
            self._tell(self, None)

    def resume(self, epoch: int, samples: int) -> None:
        """Skip the first `samples` of `epoch`, and let the framework count from there."""
        plan = self._share_sampler.plan
        if self._position is None or not 0 < samples < plan.length():
            return
        # Count the remaining batches, of today's size, from the epoch's end, so that the epoch ends at its usual
        # number.
        batches = len(plan) - math.ceil((plan.length() - samples) / plan.batch_size)
        self._base = (batches, samples)
        self._share_sampler.skip = (epoch, samples)
        self._position.move(batches)

    def resume_by_count(self, epoch: int) -> None:
        """If a checkpoint has only a number of batches, assume that they had today's size."""
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
                f"data has {length} now: resume with the same data, or from a checkpoint at the end of an epoch"
            )
        self.resume(state["epoch"], state["samples"])


def rebuild(loader: Any, sampler: ShareSampler, predicting: bool) -> Any:
    """Return a DataLoader of `loader`'s class, with its arguments, that loads what `sampler` yields."""
    alone = loader.batch_sampler is None
    model = copy.copy(loader)
    if not alone:
        # Lightning finds the constructor's arguments, but fails on batch samplers of classes that it does not know.
        object.__setattr__(model, "batch_sampler", BatchSampler(sampler, 1, drop_last=False))
    arguments, keywords = constructor_arguments(model, sampler)
    keywords = {
        **dict(zip(_positional(type(loader)), arguments, strict=False)),
        **keywords,
        "batch_size": None if alone else 1,
        "sampler": sampler if alone else None,
        "batch_sampler": None if alone else noting_indices(sampler) if predicting else sampler,
        "shuffle": False,
        "drop_last": False,
    }
    rebuilt = construct_like(loader, **keywords)
    if sampler.seeds:
        seed_dataset(rebuilt)
    return rebuilt


def _positional(kind: type) -> list[str]:
    """Return the names of a class's positional arguments."""
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [name for name, parameter in inspect.signature(kind).parameters.items() if parameter.kind in named]
