"""The curve that our strategies must follow: Lightning's own Trainer on one device, with N times the batch size.

It shares the module, the data and the Trainer's arguments with the runs on our strategies, but no strategy, no sampler
and no weighting: an epoch's last batch, and its last group of batches, have Lightning's own weights.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from functools import cache

from torch.utils.data import Sampler

from ...lightning.package import trainer_part
from ..curves import Curve
from ..order import rows_of_epoch
from .training import VariantModule, fit, mean_losses, weights_of
from .variants import VARIANTS, batch_size


@cache
def reference_curve(variant_name: str, dtype: str, workers: int, pieces: int = 1) -> Curve:
    """Train a variant in this process; `pieces` > 1 splits each batch: the noise floor of rounding."""
    variant = VARIANTS[variant_name]
    module = VariantModule(variant, dtype, pieces)
    samples = workers * batch_size(variant, workers)
    logger = logging.getLogger(trainer_part("core").__name__.removesuffix(".core"))
    level = logger.level
    logger.setLevel(logging.WARNING)  # it lists the devices each time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the number of the DataLoader's processes
            trainer = fit(module, variant, dtype, samples, _Order(variant.length), strategy="auto", devices=1)
    finally:
        logger.setLevel(level)
    return Curve(mean_losses([module.seen]), weights_of(trainer))


class _Order(Sampler[int]):
    """The order of an epoch, from its definition."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; Lightning calls it."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        return iter(rows_of_epoch(self._length, self._epoch).tolist())

    def __len__(self) -> int:
        return self._length
