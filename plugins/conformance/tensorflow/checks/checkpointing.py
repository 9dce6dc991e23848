"""Contract 10: checkpointed layers train as without, dropout and statistics included."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .....adapters import Callback, Strategy
from ....gradient_checkpointing import GradientCheckpointing
from ...checks.common import same_everywhere, weights_of
from .table import TENSORFLOW

BOUND = 1e-6  # largest difference of a loss or a weight


class Block(keras.layers.Layer):  # type: ignore[misc]
    """Dense, BatchNormalization, dropout and a residual; counts how often it is traced."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.traces = 0
        self.dense = keras.layers.Dense(8, kernel_initializer=keras.initializers.GlorotUniform(seed=seed))
        self.normalization = keras.layers.BatchNormalization(momentum=0.5)
        self.dropout = keras.layers.Dropout(0.5, seed=seed)

    def build(self, shape: Any) -> None:
        for layer in (self.dense, self.normalization, self.dropout):
            layer.build(shape)

    def call(self, features: Any) -> Any:
        self.traces += 1
        return features + self.dropout(self.normalization(self.dense(features)))


class Net(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(seed) for seed in range(3)]

    def build(self, shape: Any) -> None:
        for block in self.blocks:
            block.build(shape)
        self.built = True

    def call(self, features: Any) -> Any:
        for block in self.blocks:
            features = block(features)
        return features


@TENSORFLOW.add
def checkpointed_layers_train_as_without(strategy: Strategy, folder: Path) -> None:
    losses, weights = _trained(strategy, [], traces=1)
    checkpointing = GradientCheckpointing()
    again, same = _trained(strategy, [checkpointing], traces=2)
    assert np.max(np.abs(np.subtract(again, losses))) <= BOUND, (again, losses)
    assert same.keys() == weights.keys()
    for name, weight in weights.items():
        assert np.max(np.abs(same[name] - weight)) <= BOUND, name
    assert np.max(np.abs(weights["5.moving_variance"] - 1)) > 0.01, "the statistics were not moved"
    trained = [weight for name, weight in same.items() if "moving" not in name]
    assert same_everywhere(strategy, trained)


@TENSORFLOW.add
def budgets_hold_for_larger_batches_with_one_plan(strategy: Strategy, folder: Path) -> None:
    """The last batches are larger on some workers only."""
    losses, _ = _stepped(strategy, [])
    checkpointing = GradientCheckpointing(budget=0.7)
    again, plans = _stepped(strategy, [checkpointing])
    assert np.max(np.abs(np.subtract(again, losses))) <= BOUND, (again, losses)
    first, last = plans[0], plans[-1]
    assert last.without_bytes > first.without_bytes, "larger batches were not planned for"
    assert first.layers and last.layers
    for plan in plans:
        assert plan.predicted_bytes <= plan.budget
        assert strategy.gather(plan) == [plan] * strategy.worker.world_size


def _stepped(strategy: Strategy, checkpointing: Sequence[GradientCheckpointing]) -> tuple[list[float], list[Any]]:
    """Return the losses of two epochs of larger batches each, and the plans after them."""
    training = _prepared(strategy, lambda: keras.optimizers.SGD(0.01), callbacks=checkpointing)
    data = np.random.RandomState(4).randn(13, 8).astype(np.float32)
    losses, plans = [], []
    for size in (12, 13):
        losses += [float(training.step(batch)) for batch in training.batches(data[:size], size)]
        plans += [callback.plan for callback in checkpointing]
    return losses, plans


def _trained(
    strategy: Strategy, callbacks: Sequence[Callback], traces: int
) -> tuple[list[float], dict[str, np.ndarray[Any, Any]]]:
    """Return losses and weights of a few steps, two micro-batches each, the last one with empty shares."""
    training = _prepared(
        strategy,
        lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
        accumulate=2,
        clip_norm=1.0,
        callbacks=callbacks,
    )
    data = np.random.RandomState(4).randn(49, 8).astype(np.float32)
    losses = [float(training.step(batch)) for batch in training.batches(data, 12, epochs=2)]
    assert [block.traces for block in training.model.blocks] == [2 * traces] * 3, "once for each micro-batch and pass"
    return losses, weights_of(training)


def _prepared(strategy: Strategy, optimizer: Callable[[], Any], **options: Any) -> Any:
    with strategy.scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about BatchNormalization, which has its own check
        model = Net()
        model.build((None, 8))
        return strategy.prepare(
            model, optimizer(), lambda m, x: tf.reduce_mean(tf.square(m(x, training=True) - 1)), **options
        )
