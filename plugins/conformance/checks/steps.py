"""Contract 1: the same curve (the curves themselves are compared outside the job)."""

from __future__ import annotations

import math
from pathlib import Path

from ....adapters import Strategy
from .. import curves
from ..variants import VARIANTS
from .common import SHARED, batches_of, same_everywhere, weights_of


@SHARED.add
def replicas_stay_equal_to_the_bit(strategy: Strategy, folder: Path) -> None:
    variant = VARIANTS["adamw"]
    training = curves.prepare(strategy, variant, "float32")
    curves.train(strategy, training, variant, "float32", steps=7)
    assert same_everywhere(strategy, weights_of(training).values())


@SHARED.add
def loss_is_one_number_that_waits_to_be_read(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    losses = [training.step(batch) for batch in batches_of(strategy, training, steps=3)]
    read = [float(loss) for loss in losses]
    assert strategy.gather(read) == [read] * strategy.worker.world_size
    assert losses[0] == read[0] and f"{losses[0]:.3f}" == f"{read[0]:.3f}" and sum(map(float, losses)) == sum(read)
    if strategy.worker.is_main:  # reading is local: one worker may, alone
        assert math.isfinite(float(training.step(next(batches_of(strategy, training)))))
    else:
        training.step(next(batches_of(strategy, training)))
