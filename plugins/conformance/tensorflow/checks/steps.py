"""Contract 1 and 2: the same curve, and the differences that are legal."""

from __future__ import annotations

import dataclasses
import math
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from .....adapters import Strategy
from ...checks.common import same_everywhere, weights_of
from .table import TENSORFLOW

# 1. Same curve.


@TENSORFLOW.add
def workers_start_from_rank_0(strategy: Strategy, folder: Path) -> None:
    def draw(seed: int) -> tuple[Any, Any]:
        kernel = keras.initializers.GlorotUniform(seed=seed)
        normalization = keras.layers.BatchNormalization()
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, kernel_initializer=kernel), normalization])
        normalization.moving_mean.assign(np.random.RandomState(seed).randn(4))
        optimizer = keras.optimizers.Adam(0.1)
        optimizer.build(model.trainable_variables)
        optimizer.iterations.assign(seed)
        return model, optimizer

    with strategy.scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about BatchNormalization, which has its own check
        training = strategy.prepare(*draw(strategy.worker.rank), lambda m, x: tf.reduce_mean(m(x)))
    expected, _ = draw(0)
    found = weights_of(training)
    for number, variable in enumerate(expected.variables):
        assert np.array_equal(found[f"{number}.{variable.name}"], variable.numpy()), variable.name
    assert training.optimizer.iterations.numpy() == 0


@TENSORFLOW.add
def mixed_precision_is_the_policys(strategy: Strategy, folder: Path) -> None:
    policy = keras.DTypePolicy("mixed_bfloat16")
    with strategy.scope():
        layers = [keras.layers.Dense(8, dtype=policy), keras.layers.Dense(1, dtype="float32")]
        model = keras.Sequential([keras.Input((4,)), *layers])
        training = strategy.prepare(model, keras.optimizers.SGD(0.05), lambda m, x: tf.reduce_mean(tf.square(m(x))))
    data = np.linspace(-1, 1, 96, dtype=np.float32).reshape(24, 4)
    losses = [float(training.step(batch)) for batch in training.batches(data, 6, epochs=3)]
    assert losses[-1] < losses[0] and math.isfinite(losses[-1])
    assert layers[0](data[:1]).dtype == tf.bfloat16, "the policy was not respected"
    weights = weights_of(training)
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}
    assert same_everywhere(strategy, weights.values())


# 2. Legal differences are named, the rest refused.


@TENSORFLOW.add
def parameter_used_by_some_workers_gets_the_mean(strategy: Strategy, folder: Path) -> None:
    class Partial(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            names = ("always", "rank_0_only", "never", "rows")
            self.always, self.rank_0_only, self.never, self.rows = (
                self.add_weight(shape=(3,), initializer="ones", name=name) for name in names
            )
            self.built = True

        def call(self, batch: Any) -> Any:
            used = tf.reduce_sum(self.always)
            if strategy.worker.is_main:  # whose gradient of rows is sparse
                used += tf.reduce_sum(self.rank_0_only) + tf.reduce_sum(tf.gather(self.rows, [0, 0, 1]))
            return used

    with strategy.scope():
        optimizer = keras.optimizers.AdamW(0.1, weight_decay=0.5)
        training = strategy.prepare(Partial(), optimizer, lambda m, x: m(x) + 0.0 * tf.reduce_sum(x))
    for batch in training.batches(np.zeros((12, 1), np.float32), 6, epochs=2):
        training.step(batch)
    weights = weights_of(training)
    assert np.array_equal(weights["2.never"], np.ones(3)), "a parameter without a gradient was updated"
    for used in (weights["1.rank_0_only"], weights["3.rows"][:2]):
        assert (used < 0.95).all(), "a parameter that one worker used was not updated"
    assert same_everywhere(strategy, weights.values())


@TENSORFLOW.add
def placeholder_leaves_no_trace(strategy: Strategy, folder: Path) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    with strategy.scope(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        normalization, dropout = keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)
        model = keras.Sequential([keras.Input((3,)), normalization, dropout, keras.layers.Dense(1)])
        training = strategy.prepare(
            model, keras.optimizers.SGD(0.01), lambda m, x: tf.reduce_mean(tf.square(m(x, training=True)))
        )
    warned = any("BatchNorm" in str(warning.message) for warning in caught)
    assert warned == (world_size > 1), "the warning about unsynchronized BatchNormalization is for several workers"
    data = np.random.RandomState(1).randn(2 * world_size + 1, 3).astype(np.float32)
    full, short = training.batches(data, 2 * world_size)
    assert short.weights == ((1.0,) if rank == 0 else (0.0,))
    own = [normalization.moving_mean, normalization.moving_variance]
    before = [variable.numpy().copy() for variable in own]
    loss = training.step(dataclasses.replace(short, random_seed=None))
    untouched = all(map(np.array_equal, before, [variable.numpy() for variable in own]))
    assert untouched == (rank > 0), "only a placeholder leaves the statistics unchanged"
    assert math.isfinite(float(loss)) and math.isfinite(float(training.step(full)))
