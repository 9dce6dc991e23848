"""Contract 2 and 8: bad data and models that cannot be trained are refused on every worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from .....adapters import DataError, OptionError, Strategy
from .table import TENSORFLOW


def _net() -> Any:
    return keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])


def _loss(model: Any, batch: Any) -> tf.Tensor:
    return tf.reduce_mean(model(batch))


@TENSORFLOW.add
def refuses_what_has_no_mean(strategy: Strategy, folder: Path) -> None:
    with strategy.scope():
        model, optimizer = _net(), keras.optimizers.SGD(0.1)
        with pytest.raises(OptionError, match="accumulate"):
            strategy.prepare(model, optimizer, _loss, accumulate=0)
        with pytest.raises(OptionError, match="clip_norm"):
            strategy.prepare(model, optimizer, _loss, clip_norm=-1.0)
        training = strategy.prepare(model, optimizer, _loss)
    data = np.zeros((8, 1), np.float32)
    with pytest.raises(DataError, match="length 0"):
        training.batches(data[:0], 4)
    with pytest.raises(DataError, match="add up to 0"):
        training.step(next(training.batches(data, 8, weight=lambda _: 0)))
    if strategy.worker.world_size > 1:
        with pytest.raises(OptionError, match="smaller than the"):
            training.batches(data, strategy.worker.world_size - 1)
    with strategy.scope():
        several = strategy.prepare(model, optimizer, lambda m, x: m(x))
    with pytest.raises(OptionError, match="scalar"):
        several.step(next(several.batches(data, 8)))


@TENSORFLOW.add
def refuses_models_and_optimizers_that_it_cannot_train(strategy: Strategy, folder: Path) -> None:
    class Module:
        """Like another framework's model."""

    unbuilt = keras.Sequential([keras.layers.Dense(1)])
    with strategy.scope():
        model, optimizer = _net(), keras.optimizers.SGD(0.1)
        accumulating = keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        alien = keras.optimizers.SGD(0.1)
        alien.build(_net().trainable_variables)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 10)
    refused: tuple[tuple[str, Any, Any, Any], ...] = (
        ("gradient_accumulation_steps", model, accumulating, None),
        ("learning_rate", model, optimizer, schedule),
        ("no trainable variables yet", unbuilt, optimizer, None),
        ("not a Keras 3 model", Module(), optimizer, None),
        ("not a Keras 3 optimizer", model, Module(), None),
        ("optimizer holds variables", model, alien, None),
    )
    for message, one, other, scheduler in refused:
        with strategy.scope(), pytest.raises(OptionError, match=message):
            strategy.prepare(one, other, _loss, scheduler=scheduler)
    with strategy.scope():
        partly = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1), keras.layers.Dense(1)])
        partly.layers[0].trainable = False
        training = strategy.prepare(partly, keras.optimizers.SGD(0.1), _loss)
    first, second = training.batches(np.ones((16, 1), np.float32), 8)
    training.step(first)
    partly.layers[0].trainable = True
    with pytest.raises(OptionError, match=r"kernel' was frozen when the model was prepared"):
        training.step(second)


@TENSORFLOW.add
def refuses_datasets_without_a_common_order(strategy: Strategy, folder: Path) -> None:
    with strategy.scope():
        training = strategy.prepare(_net(), keras.optimizers.SGD(0.1), _loss)
    numbers = tf.data.Dataset.range(24).map(lambda number: tf.cast(number, tf.float32)[None])
    for message, dataset in (
        ("unknown cardinality", numbers.filter(lambda number: number[0] > 1)),
        ("infinite cardinality", numbers.repeat()),
        ("without a seed", numbers.shuffle(24)),
        ("without a seed", numbers.shuffle(24).batch(8)),
        ("no length, or no common order", iter([1.0, 2.0])),
    ):
        with pytest.raises(DataError, match=message):
            training.batches(dataset, 8)
    with pytest.raises(OptionError, match="batched by 4"):
        training.batches(numbers.batch(4), 8)
    with pytest.raises(OptionError, match="no option 'num_workers'"):
        training.batches(numbers, 8, num_workers=2)


@TENSORFLOW.add
def refuses_samples_that_differ_between_workers(strategy: Strategy, folder: Path) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    if world_size == 1:
        return
    with strategy.scope():
        training = strategy.prepare(_net(), keras.optimizers.SGD(0.1), _loss)
    differing = np.zeros((24, 1 + rank), np.float32)
    other_type = np.zeros((24, 1), np.float64 if rank == 1 else np.float32)
    longer = np.zeros((24 + 24 * rank, 1), np.float32)  # one worker would have one more step, and wait in it for ever
    for dataset in (differing, tf.data.Dataset.from_tensor_slices(differing), other_type, longer):
        with pytest.raises(DataError, match="worker 1"):
            training.batches(dataset, 2 * world_size)
