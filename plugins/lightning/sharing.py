"""A Trainer's loaders, shared out among the workers, and what each batch then counts for."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ...adapters import DataError
from ...adapters.torch.loader_sigterm import outlive_sigterm
from ...adapters.torch.placeholder import without_side_effects
from .compat import load_loader_states, log_without_weight, seed_loader_processes, take_over_sampling
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
    """A strategy of Lightning's that gives each worker its share of the data, and knows its weight.

    seam: the callbacks of farandole's that watch the training.
    """

    _own_sampling = False

    def _share_nothing_yet(self) -> None:
        self._shares: dict[ShareLoader, Share] = {}  # of the batches being trained on
        self._shares_used = False
        self._evaluated: Share | None = None
        self.seam = NOBODY

    def _begin_sharing(self, trainer: Any) -> None:
        """Begin a run: nothing is loaded yet, and what is will be shared out here."""
        self._shares.clear()
        self._evaluated = None
        self._own_sampling |= take_over_sampling(trainer)

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
        seed_loader_processes(loader, self.global_rank)  # Lightning would give this to the loader around it
        outlive_sigterm(loader)
        if not trainer.training:
            if plan.placeholders() > 0 and worker.is_main:
                warnings.warn(
                    f"the last batch has no samples for {plan.placeholders()} worker(s), which repeat one: logged "
                    "means leave it out, metric objects and predictions do not. A larger batch size avoids it",
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
        # Loaders that were asked for before the checkpoint was read, as estimated_stepping_batches does, know of none.
        load_loader_states(loop)
        loaders = _CombinedLoader(self.lightning_module.trainer.train_dataloader).flattened
        shared = [loader for loader in loaders if isinstance(loader, ShareLoader)]
        if shared and loop.max_batches == float("inf"):
            raise DataError(
                "one of the loaders of a training step has no length, and Lightning then reads the next batch before "
                "this one is trained on, so that nobody knows its weight: give all of them a length"
            )
        if TrainingPosition(loop).is_resumed():
            if len({len(loader) for loader in shared}) > 1:
                raise DataError(
                    "the checkpoint was written in the middle of an epoch, and the training loaders have different "
                    "numbers of batches: nobody knows how far each was. Resume from a checkpoint of an epoch's end"
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

    def _counts_for_nothing(self) -> bool:
        return bool(self._shares) and all(share.weight == 0 for share in self._shares.values())

    def _share_of_loss(self) -> Share | None:
        """Return which share of the workers' batch the loss is of."""
        shares = list(self._shares.values())
        if not shares:
            return None
        first = shares[0]
        if any(share.weight * first.total != first.weight * share.total for share in shares[1:]):
            raise DataError(
                "the loaders of one training step have shares of different sizes on this worker, so that its loss has "
                "no one weight: choose batch sizes that divide the datasets, or drop_last=True"
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
        # A mean of integers is rounded off otherwise, and with it the number of samples that a logged mean is over.
        if isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            tensor = tensor.double()
        return super().reduce(tensor, group, reduce_op)
