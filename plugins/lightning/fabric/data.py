"""Give each worker its share of what a DataLoader loads, and find the share that a loss belongs to.

In Fabric the user writes the loop, so nothing says which batch a loss comes from. Modules that were set up report when
they run: a loss belongs to the batches that were loaded last before the forward passes.
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
    """The share of the workers' batch that the next loss belongs to."""

    def __init__(self) -> None:
        self._loaded: dict[ShareLoader, Share] = {}
        self._has_run = False  # on the loaded batches
        self._trained: set[tuple[int, int]] = set()  # weight and total of the next loss's batches
        self._evaluated: set[tuple[int, int]] = set()  # the same, by modules in evaluation mode
        self._last: set[tuple[int, int]] = set()  # of the last loss, until something is loaded

    def load(self, loader: ShareLoader, share: Share | None) -> None:
        """Note that a batch was loaded, or that an iteration ended.

        Loaders that are read before a module runs belong to one step.
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
        """Note that a module runs on the loaded batches."""
        self._has_run = True
        if torch.is_grad_enabled():
            found = {(share.weight, share.total) for share in self._loaded.values()}
            (self._trained if training else self._evaluated).update(found)

    def counts_for_nothing(self) -> bool:
        """Whether the loaded batches are placeholders for an empty share."""
        return bool(self._loaded) and all(share.weight == 0 for share in self._loaded.values())

    def of_loss(self) -> tuple[int, int] | None:
        """Return how many samples the loss counts for, and how many all workers have; `None` if unknown.

        Raises:
            DataError: its batches have shares of different sizes.
        """
        loaded = {(share.weight, share.total) for share in self._loaded.values()}
        found = self._trained or self._evaluated or self._last or loaded
        self._trained, self._evaluated, self._last = set(), set(), set(found)
        if not found:
            return None
        weight, total = next(iter(found))
        if any(weight * other_total != other_weight * total for other_weight, other_total in found):
            raise DataError(
                "a loss was computed from several batches, and this worker's shares of them have different sizes, so "
                "it has no single weight: call fabric.backward() for each batch, or use DataLoader(drop_last=True)"
            )
        return weight, total


class SharedLoader(ShareLoader):
    """A loader of a worker's share, which reports to `shares`."""

    def __init__(self, given: Any, loader: Any, sampler: ShareSampler, shares: LossShares) -> None:
        super().__init__(given, loader, sampler, shares.load)
        # Fabric's own wrapper shows these attributes.
        self.__dict__.update({name: value for name, value in vars(loader).items() if name not in self.__dict__})


class PlanByUse(Plan):
    """One plan for training and one for evaluation, chosen by whether gradients are recorded."""

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
    """Return a loader of this worker's share; `loader` itself if it must stay as it is."""
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
