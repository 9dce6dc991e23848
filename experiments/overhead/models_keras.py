"""The models of `overhead` and their data, in Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from .shapes import LEARNING_RATE, MOMENTUM, Shape

Array = np.ndarray[Any, Any]


def build_model(shape: Shape) -> keras.Model:
    """Return the model, with the same weights at each call."""
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(shape.width, activation="gelu") for _ in range(shape.layers - 1)]
    return keras.Sequential([keras.Input((shape.width,)), *layers, keras.layers.Dense(shape.width)])


def build_optimizer() -> keras.optimizers.Optimizer:
    """Return a new optimizer."""
    return keras.optimizers.SGD(LEARNING_RATE, momentum=MOMENTUM)


def build_data(shape: Shape, steps: int, workers: int) -> tuple[Array, Array]:
    """Return inputs and targets for `steps` steps of all workers."""
    random = np.random.default_rng(1)
    inputs, targets = random.standard_normal((2, steps * workers * shape.batch, shape.width), np.float32)
    return inputs, targets


def loss_fn(model: keras.Model, batch: tuple[Any, Any]) -> Any:
    """Return the mean squared error of a micro-batch."""
    inputs, targets = batch
    return keras.ops.mean(keras.ops.square(model(inputs, training=True) - targets))


def check_same(ours: keras.Model, theirs: keras.Model) -> None:
    """Raise `RuntimeError` if two models did not train alike: their times cannot be compared."""
    for mine, other in zip(ours.variables, theirs.variables, strict=True):
        difference = float(np.linalg.norm(mine.numpy() - other.numpy()) / np.linalg.norm(other.numpy()))
        if not difference < 1e-4:
            raise RuntimeError(
                f"the two models are not the same: {mine.path!r} differs by {difference:.1e} of its norm"
            )
