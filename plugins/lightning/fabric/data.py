"""Give each worker its share of what a DataLoader loads, and find out which share a loss is of.

Fabric's user writes the loop, so nobody says which batch a loss was computed from. Modules that were set up say when
they run: a loss is of what was loaded last when the forward passes before it ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ....adapters import DataError
from ....adapters.torch.strategy import TorchStrategy
from ..data import ShareLoader, ShareSampler, rebuild, sampler_of
from ..plans import Plan, Share, order_seed, plan_of, refuse_different_plans


class LossShares:
    """Which part of the workers' batch the next loss is of."""

    def __init__(self) -> None:
        self._loaded: dict[ShareLoader, Share] = {}
        self._has_run = False  # on what is loaded
        self._trained: set[tuple[int, int]] = set()  # weight and total of what the next loss was computed from
        self._evaluated: set[tuple[int, int]] = set()  # the same, by modules in evaluation mode
        self._last: set[tuple[int, int]] = set()  # of the last loss, until something is loaded

    def load(self, loader: ShareLoader, share: Share | None) -> None:
        """Take note of a batch that was loaded, or of the end of an iteration.

        Loaders that are read before a module runs are read together.
        """
        if share is None:
            self._loaded.pop(loader, None)
            return
        if self._has_run:
            self._loaded.clear()
            self._has_run = False
        self._last.clear()
        self._loaded[loader] = share

    def run(self, training: bool) -> None:
        """Take note that a module runs on what is loaded."""
        self._has_run = True
        if torch.is_grad_enabled():
            found = {(share.weight, share.total) for share in self._loaded.values()}
            (self._trained if training else self._evaluated).update(found)

    def counts_for_nothing(self) -> bool:
        """Whether what is loaded stands in for an empty share."""
        return bool(self._loaded) and all(share.weight == 0 for share in self._loaded.values())

    def of_loss(self) -> tuple[int, int] | None:
        """Return how many samples of the loss count, and of how many on all workers; `None` where nobody knows.

        Raises:
            DataError: it was computed from batches whose shares are of different sizes.
        """
        loaded = {(share.weight, share.total) for share in self._loaded.values()}
        found = self._trained or self._evaluated or self._last or loaded
        self._trained, self._evaluated, self._last = set(), set(), set(found)
        if not found:
            return None
        weight, total = next(iter(found))
        if any(weight * other_total != other_weight * total for other_weight, other_total in found):
            raise DataError(
                "a loss was computed from several batches of which this worker has shares of different sizes, so that "
                "it has no one weight: call fabric.backward() for each batch, or pass drop_last=True to the DataLoader"
            )
        return weight, total


class SharedLoader(ShareLoader):
    """A loader of a worker's share, which tells `shares` what it loads."""

    def __init__(self, given: Any, loader: Any, sampler: ShareSampler, shares: LossShares) -> None:
        super().__init__(given, loader, sampler, shares.load)
        # Fabric's own wrapper shows what it finds here.
        self.__dict__.update({name: value for name, value in vars(loader).items() if name not in self.__dict__})


class PlanByUse(Plan):
    """One plan to train by and one to evaluate by, which is told by whether gradients are recorded."""

    def __init__(self, trained: Plan, evaluated: Plan) -> None:
        self.batch_size = trained.batch_size
        self._trained = trained
        self._evaluated = evaluated

    def __len__(self) -> int:
        return len(self._trained)

    def length(self) -> int:
        return self._trained.length()

    def placeholders(self) -> int:
        return self._trained.placeholders()

    def batches(self, epoch: int, skip: int) -> Iterator[list[Any]]:
        plan = self._trained if torch.is_grad_enabled() else self._evaluated
        return plan.batches(epoch, skip)


def share_out(loader: Any, adapter: TorchStrategy, shares: LossShares) -> Any:
    """Return a loader of this worker's share; `loader` itself where it has to be left alone."""
    seed = order_seed(adapter)
    plan = plan_of(loader, adapter.worker, seed, adapter.broadcast, training=True)
    if plan is None:
        return loader
    refuse_different_plans(plan, adapter)
    if not loader.drop_last:
        evaluated = plan_of(loader, adapter.worker, seed, adapter.broadcast, training=False)
        assert evaluated is not None
        plan = PlanByUse(plan, evaluated)
    sampler = sampler_of(loader, plan, adapter.worker, seed)
    return SharedLoader(loader, rebuild(loader, sampler, predicting=False), sampler, shares)
