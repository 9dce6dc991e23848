"""A variant as a LightningModule, and its training by a Trainer: the same on our strategies and on Lightning's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler, TensorDataset

from ...lightning.package import fabric_part, trainer_part
from ..curves import Curve
from ..torch import program
from ..variants import SEED, STEPS, Variant
from .variants import VARIANTS, batch_size

_LightningModule: Any = trainer_part("core").LightningModule
_PRECISIONS = {"float32": "32-true", "float64": "64-true"}

Seen = list[tuple[list[int], float]]
"""For each batch of a worker: the dataset's rows in it, and their mean loss."""


class VariantModule(_LightningModule):  # type: ignore[misc]
    """A variant's model, optimizer and scheduler. `pieces` > 1 splits each batch, in one process."""

    def __init__(self, variant: Variant, dtype: str, pieces: int = 1) -> None:
        super().__init__()
        self.net, self._optimizer, self._scheduler = program.build(variant, dtype)
        self._pieces = pieces
        self.seen: Seen = []

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        features, classes, tokens, rows = batch
        pieces = zip(*(column.tensor_split(self._pieces) for column in (features, classes, tokens)), strict=True)
        losses = [program.mean_loss(self.net, piece) * (len(piece[0]) / len(rows)) for piece in pieces if len(piece[0])]
        loss = torch.stack(losses).sum()
        self.seen.append((rows.tolist(), loss.item()))
        return loss

    def configure_optimizers(self) -> Any:
        if self._scheduler is None:
            return self._optimizer
        return {"optimizer": self._optimizer, "lr_scheduler": {"scheduler": self._scheduler, "interval": "step"}}


def fit(
    module: VariantModule,
    variant: Variant,
    dtype: str,
    samples: int,
    sampler: Sampler[int] | None = None,
    **where: Any,
) -> Any:
    """Train `STEPS` steps; return the Trainer.

    Args:
        samples: the DataLoader's batch size.
        sampler: of the DataLoader, which by default shuffles.
        where: the Trainer's strategy and devices.
    """
    dataset = TensorDataset(*program.dataset(variant, dtype), torch.arange(variant.length))
    trainer = trainer_part("trainer").Trainer(
        max_steps=STEPS,
        max_epochs=-1,
        accumulate_grad_batches=variant.accumulate,
        gradient_clip_val=variant.clip_norm,
        precision=_PRECISIONS[dtype],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **where,
    )
    trainer.fit(module, DataLoader(dataset, batch_size=samples, shuffle=sampler is None, sampler=sampler))
    return trainer


def run_variant(strategy: str, workers: int, variant_name: str, dtype: str) -> Curve:
    """Train a variant on our strategy, with the launcher's workers; all of them call it.

    Returns:
        The loss of each batch (a step accumulates several), as the mean over the samples of all workers; and the
        weights after the last step.
    """
    variant = VARIANTS[variant_name]
    fabric_part("utilities.seed").seed_everything(SEED, verbose=False)
    module = VariantModule(variant, dtype)
    trainer = fit(module, variant, dtype, batch_size(variant, workers), strategy=strategy, devices="auto")
    own = weights_of(trainer)
    # If weights are sharded, they are gathered on rank 0 only.
    found = trainer.strategy.adapter.gather((module.seen, own if trainer.is_global_zero else None))
    return Curve(mean_losses([seen for seen, _ in found]), own or found[0][1])


def weights_of(trainer: Any) -> dict[str, Any]:
    """Return the trained weights by name, as in a checkpoint; all workers call it."""
    state = trainer.strategy.lightning_module_state_dict()
    return {name: weight.detach().cpu().numpy() for name, weight in state.items()}


def mean_losses(workers: Sequence[Seen]) -> tuple[float, ...]:
    """Return the mean loss of each batch over the samples that any worker had, each counted once."""
    losses = []
    for shares in zip(*workers, strict=True):
        counted: set[int] = set()
        total = 0.0
        for rows, loss in shares:
            new = set(rows) - counted
            total += len(new) * loss  # a placeholder repeats another worker's samples
            counted |= new
        losses.append(total / len(counted))
    return tuple(losses)
