"""A Trainer's loaders, split among the workers, and each batch's weight."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...adapters import DataError
from ...adapters.structure import map_structure
from ...adapters.torch.loader_sigterm import outlive_sigterm
from ...adapters.torch.placeholder import without_side_effects
from .compat import (
    load_loader_states,
    loaders_to_predict,
    log_without_weight,
    seed_loader_processes,
    take_over_sampling,
)
from .data import ShareLoader, rebuild, sampler_of
from .forks import warn_of_forks
from .in_place_of import as_given
from .joining import Joining
from .package import trainer_part
from .plans import Share, order_seed, plan_of, refuse_different_plans
from .position import TrainingPosition
from .records import NOBODY
from .unshared import watch

_DDPStrategy: Any = trainer_part("strategies").DDPStrategy
_CombinedLoader: Any = trainer_part("utilities.combined_loader").CombinedLoader


class Sharing(Joining, _DDPStrategy):  # type: ignore[misc]
    """A Lightning strategy that gives each worker its share of the data, and knows its weight.

    seam: the farandole callbacks that watch the training.
    """

    _own_sampling = False

    def _share_nothing_yet(self) -> None:
        self._shares: dict[ShareLoader, Share] = {}  # of the batches being trained on
        self._shares_used = False
        self._evaluated: Share | None = None
        self.seam = NOBODY

    def _begin_sharing(self, trainer: Any) -> None:
        """Begin a run, in which this class splits the data."""
        self._shares.clear()
        self._evaluated = None
        self._own_sampling |= take_over_sampling(trainer)
        if trainer.predicting:
            # Lightning constructs them anew, and cannot construct ours, which a Trainer shows after another run.
            source = loaders_to_predict(trainer)
            source.loaders = map_structure(as_given, source.loaders)

    def process_dataloader(self, dataloader: Any) -> Any:
        trainer, worker = self.lightning_module.trainer, self.adapter.worker
        dataloader = as_given(dataloader)
        warn_of_forks(dataloader, self.adapter)
        ours = self._own_sampling and isinstance(dataloader, torch.utils.data.DataLoader)
        seed, broadcast = order_seed(self.adapter), self.adapter.broadcast
        plan = plan_of(dataloader, worker, seed, broadcast, trainer.training) if ours else None
        timed = self._timed if trainer.training and self.seam.watches("data") else None
        if plan is None and worker.world_size == 1 and timed is None:
            return dataloader
        if plan is None:
            seed_loader_processes(dataloader, self.global_rank)
            outlive_sigterm(dataloader)
            copies = ours and isinstance(dataloader.dataset, torch.utils.data.IterableDataset)
            return watch(dataloader, self.adapter, trainer.training, copies, timed)
        sampler = sampler_of(dataloader, plan, worker, seed)
        refuse_different_plans(plan, self.adapter)
        loader = rebuild(dataloader, sampler, trainer.predicting)
        seed_loader_processes(loader, self.global_rank)  # Lightning would set this on the outer loader
        outlive_sigterm(loader)
        if not trainer.training:
            if plan.placeholders() > 0 and worker.is_main:
                warnings.warn(
                    f"the last batch has no samples for {plan.placeholders()} worker(s), which repeat one: it does not "
                    "count in logged means, but in metric objects and predictions. A larger batch size avoids it",
                    stacklevel=2,
                )
            return ShareLoader(dataloader, loader, sampler, self._note_evaluated)
        position = TrainingPosition(trainer.fit_loop)
        return ShareLoader(dataloader, loader, sampler, self._note_trained, position, timed or iter)

    def _timed(self, batches: Iterable[Any]) -> Iterator[Any]:
        return self.seam.each("data", batches)

    def on_train_start(self) -> None:
        super().on_train_start()
        loop = self.lightning_module.trainer.fit_loop
        # Loaders may be created before the checkpoint is read, for example by estimated_stepping_batches.
        load_loader_states(loop)
        loaders = _CombinedLoader(self.lightning_module.trainer.train_dataloader).flattened
        shared = [loader for loader in loaders if isinstance(loader, ShareLoader)]
        if shared and loop.max_batches == float("inf"):
            raise DataError(
                "a loader of the training step has no length, so Lightning reads the next batch before it trains on "
                "this one, whose weight is then unknown: give all of them a length"
            )
        if TrainingPosition(loop).is_resumed():
            if len({len(loader) for loader in shared}) > 1:
                raise DataError(
                    "the checkpoint was written in the middle of an epoch, and the training loaders have different "
                    "numbers of batches, so their positions are unknown: resume from a checkpoint at an epoch's end"
                )
            for loader in shared:
                loader.resume_by_count(loop.epoch_progress.current.processed)

    # Training.

    def _note_trained(self, loader: ShareLoader, share: Share | None) -> None:
        if self._shares_used:
            self._shares.clear()
            self._shares_used = False
        if share is None:
            self._shares.pop(loader, None)
        else:
            self._shares[loader] = share

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        self._shares_used = True
        with contextlib.ExitStack() as stack:
            if self._counts_for_nothing():
                stack.enter_context(without_side_effects(self.lightning_module))
                log_without_weight(self.lightning_module.trainer)
            return super().training_step(*args, **kwargs)

    def samples_of_batch(self) -> int | None:
        """Return how many samples this worker has in the batch; `None` if that is not known."""
        return next((share.weight for share in self._shares.values()), None)

    def _counts_for_nothing(self) -> bool:
        return bool(self._shares) and all(share.weight == 0 for share in self._shares.values())

    def _share_of_loss(self) -> Share | None:
        """Return the share of the workers' batch that the loss belongs to."""
        shares = list(self._shares.values())
        if not shares:
            return None
        first = shares[0]
        if any(share.weight * first.total != first.weight * share.total for share in shares[1:]):
            raise DataError(
                "the loaders of a training step have shares of different sizes on this worker, so its loss has no "
                "single weight: choose batch sizes that divide the datasets, or drop_last=True"
            )
        return first

    # Evaluation.

    def _note_evaluated(self, loader: ShareLoader, share: Share | None) -> None:
        self._evaluated = share

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        self._look_at_evaluated()
        return super().validation_step(*args, **kwargs)

    def test_step(self, *args: Any, **kwargs: Any) -> Any:
        self._look_at_evaluated()
        return super().test_step(*args, **kwargs)

    def _look_at_evaluated(self) -> None:
        if self._evaluated is not None and self._evaluated.weight == 0:
            log_without_weight(self.lightning_module.trainer)

    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        # A mean of integers would be rounded, and with it the number of samples behind a logged mean.
        if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)
