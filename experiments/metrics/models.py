"""The models of `overhead`, prepared with callbacks, and a brake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...adapters import Callback, Strategy, Training
from ..overhead.shapes import LEARNING_RATE, MOMENTUM, SHAPES
from .brake import Brake, braked_in_tensorflow, braked_in_torch


@dataclass(frozen=True)
class Prepared:
    """A training, and its data for some steps of all workers."""

    training: Training
    data: Any
    global_batch_size: int


def prepare_on(
    strategy: Strategy, model_name: str, steps: int, callbacks: Sequence[Callback] = (), brake: Brake | None = None
) -> Prepared:
    """Prepare a model of `overhead` on a strategy of either framework."""
    shape, workers = SHAPES[model_name], strategy.worker.world_size
    if strategy.capabilities.framework == "tensorflow":
        from ..overhead import models_keras

        keras_model, keras_loss = models_keras.build_model(shape), models_keras.loss_fn
        loss_fn = keras_loss if brake is None else braked_in_tensorflow(brake, keras_loss)
        optimizer: Any = models_keras.build_optimizer()
        training = strategy.prepare(keras_model, optimizer, loss_fn, callbacks=callbacks)
        return Prepared(training, models_keras.build_data(shape, steps, workers), shape.batch * workers)
    import torch

    from ..overhead import models

    model = models.build_model(shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    torch_loss = models.loss_fn if brake is None else braked_in_torch(brake, models.loss_fn)
    training = strategy.prepare(model, optimizer, torch_loss, callbacks=callbacks)
    return Prepared(training, models.build_data(shape, steps, workers), shape.batch * workers)
