"""Contract 1 and 4: Keras's optimizers treat the mean over the global batch as in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .....adapters import OptionError, Strategy
from ... import curves
from ...checks.common import batches_of, same_weights, weights_of
from ...variants import VARIANTS, WEIGHT_BOUND
from .table import TENSORFLOW

_OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "clipped": lambda: keras.optimizers.SGD(0.5, clipnorm=0.1, use_ema=True, ema_momentum=0.5),
    "scaled": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.5, global_clipnorm=0.1)),
    "averaged": lambda: keras.optimizers.Adam(0.01, use_ema=True, ema_momentum=0.5, ema_overwrite_frequency=2),
}
_REFUSABLE = ("averaged",)  # overwrites weights in every second step, which MultiWorkerMirroredStrategy cannot do


@TENSORFLOW.add
def optimizers_see_the_mean(strategy: Strategy, folder: Path) -> None:
    data = np.random.RandomState(2).randn(16, 3).astype(np.float32)
    data[::2] *= 5  # so that no worker's gradient is like the mean, and clipping it has another result
    for name, make in _OPTIMIZERS.items():
        expected = _plain(make(), data)
        with strategy.scope():
            model, optimizer = _net(), make()
            try:
                training = strategy.prepare(model, optimizer, _loss)
            except OptionError:
                assert name in _REFUSABLE
                continue
        for batch in training.batches(data, 8, epochs=2, shuffle=False):
            training.step(batch)
        with strategy.scope():
            optimizer.finalize_variable_values(model.trainable_variables)
        for found, weight in zip(weights_of(training).values(), expected, strict=True):
            assert np.linalg.norm(found - weight) <= WEIGHT_BOUND["float32"] * np.linalg.norm(weight), name


@TENSORFLOW.add
def learning_rate_is_the_users(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["adamw"], "float32")
    assert training.optimizer.learning_rate.numpy() == np.float32(3e-3), "the learning rate was changed"
    batches = batches_of(strategy, training)
    training.step(next(batches))
    before = weights_of(training)
    training.optimizer.learning_rate = 0.0
    training.step(next(batches))
    assert same_weights(before, weights_of(training)), "a rate of 0 does not reach the engine"
    training.optimizer.learning_rate = 0.1
    training.step(next(batches))
    assert not same_weights(before, weights_of(training))


def _net() -> Any:
    drawn = keras.initializers.GlorotUniform(seed=4)
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, kernel_initializer=drawn)])


def _loss(model: Any, batch: Any) -> tf.Tensor:
    return tf.reduce_mean(tf.square(model(batch) - 1.0))


def _plain(optimizer: Any, data: Any) -> list[Any]:
    """Return the weights after the same steps in a loop of one process, as in Keras's guide."""
    model = _net()
    for _ in range(2):
        for first in range(0, len(data), 8):
            with tf.GradientTape() as tape:
                loss = _loss(model, data[first : first + 8])
                scaled = optimizer.scale_loss(loss)
            gradients = tape.gradient(scaled, [variable.value for variable in model.trainable_variables])
            optimizer.apply(gradients, model.trainable_variables)
    optimizer.finalize_variable_values(model.trainable_variables)
    return [variable.numpy() for variable in model.variables]
