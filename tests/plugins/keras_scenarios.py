"""Scenarios of `fit`, one function each, that must give the same in one process of stock Keras and on several workers.

Each takes `own`, which is given a compiled model and returns it distributed, or as it is; and a folder of its own. It
returns numbers, by name, that must be the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

Numbers = dict[str, Any]
Own = Callable[[Callable[[], Any]], Any]
Scenario = Callable[[Own, Path], Numbers]

SCENARIOS: dict[str, Scenario] = {}

_random = np.random.RandomState(0)
X, VALIDATION_X = _random.randn(97, 12).astype("float32"), _random.randn(33, 12).astype("float32")
Y, VALIDATION_Y = _random.randint(0, 4, 97), _random.randint(0, 4, 33)
WEIGHTS = _random.rand(97).astype("float32")


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def build(optimizer: Any = None, **compiled: Any) -> Callable[[], Any]:
    def make() -> Any:
        keras.utils.set_random_seed(5)
        model = keras.Sequential(
            [
                keras.Input((12,)),
                keras.layers.Dense(32, use_bias=False, kernel_regularizer="l2"),
                keras.layers.LayerNormalization(),
                keras.layers.Activation("gelu"),
                keras.layers.Dense(4),
            ]
        )
        compile_model(model, optimizer, **compiled)
        return model

    return make


def compile_model(model: Any, optimizer: Any = None, **compiled: Any) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")]
    optimizer = optimizer() if optimizer else keras.optimizers.AdamW(3e-3, weight_decay=0.05)
    model.compile(optimizer, loss, metrics=metrics, **compiled)


def fit(model: Any, x: Any = X, y: Any = Y, **options: Any) -> Numbers:
    arrays = {} if isinstance(x, tf.data.Dataset) else {"y": y, "batch_size": 32}
    validation = {} if "validation_split" in options else {"validation_data": (VALIDATION_X, VALIDATION_Y)}
    history = model.fit(x, **{"epochs": 3, "verbose": 0, **arrays, **validation, **options}).history
    weights = {f"weight{number}": weight for number, weight in enumerate(model.get_weights())}
    return {**{name: np.array(values, "float64") for name, values in history.items()}, **weights}


@scenario
def arrays(own: Own, folder: Path) -> Numbers:
    model = own(build())
    numbers = fit(model)
    numbers["evaluated"] = np.array(model.evaluate(VALIDATION_X, VALIDATION_Y, batch_size=16, verbose=0))
    numbers["predicted"] = model.predict(VALIDATION_X, batch_size=16, verbose=0)
    return numbers


@scenario
def sample_weight(own: Own, folder: Path) -> Numbers:
    return fit(own(build(weighted_metrics=["accuracy"])), sample_weight=WEIGHTS)


@scenario
def class_weight(own: Own, folder: Path) -> Numbers:
    return fit(own(build()), class_weight={0: 1.0, 1: 2.0, 2: 0.5, 3: 1.0})


@scenario
def validation_split(own: Own, folder: Path) -> Numbers:
    return fit(own(build()), validation_split=0.2)


@scenario
def shuffled_dataset(own: Own, folder: Path) -> Numbers:
    return fit(own(build()), tf.data.Dataset.from_tensor_slices((X, Y)).shuffle(97, seed=3).batch(32))


@scenario
def clipnorm(own: Own, folder: Path) -> Numbers:
    return fit(own(build(lambda: keras.optimizers.SGD(0.1, momentum=0.9, clipnorm=0.05))))


@scenario
def global_clipnorm_and_ema(own: Own, folder: Path) -> Numbers:
    return fit(own(build(lambda: keras.optimizers.Adam(3e-3, global_clipnorm=0.1, use_ema=True))))


@scenario
def empty_shares(own: Own, folder: Path) -> Numbers:
    """The last batch has one sample, and placeholder rows would change a BatchNormalization."""
    return fit(own(build()), X[:33], Y[:33])


@scenario
def built_by_fit(own: Own, folder: Path) -> Numbers:
    def make() -> Any:
        keras.utils.set_random_seed(6)
        model = keras.Sequential([keras.layers.Dense(8, "gelu"), keras.layers.Dense(4)])
        compile_model(model)
        return model

    numbers = fit(own(make))
    return {name: value for name, value in numbers.items() if not name.startswith("weight")}


class _Sum(keras.layers.Layer):
    def call(self, first: Any, second: Any = None) -> Any:
        return first if second is None else first + second


@scenario
def optional_input_left_out(own: Own, folder: Path) -> Numbers:
    def make() -> Any:
        keras.utils.set_random_seed(9)
        first, second = keras.Input((12,)), keras.Input((12,), optional=True)
        model = keras.Model([first, second], keras.layers.Dense(4)(_Sum()(first, second)))
        compile_model(model)
        return model

    return fit(own(make), (X, None), validation_data=((VALIDATION_X, None), VALIDATION_Y))


@scenario
def callbacks(own: Own, folder: Path) -> Numbers:
    model = own(build(lambda: keras.optimizers.SGD(0.5)))
    path = folder / "best.keras"
    numbers = fit(
        model,
        epochs=12,
        callbacks=[
            keras.callbacks.EarlyStopping(patience=2, restore_best_weights=True),
            keras.callbacks.ReduceLROnPlateau(patience=1, factor=0.5),
            keras.callbacks.ModelCheckpoint(path, save_best_only=True),
            keras.callbacks.CSVLogger(folder / "log.csv"),
            keras.callbacks.TerminateOnNaN(),
        ],
    )
    best = keras.saving.load_model(path)
    numbers |= {f"best{number}": weight for number, weight in enumerate(best.get_weights())}
    numbers["lines"] = np.array(len((folder / "log.csv").read_text().splitlines()))
    return numbers


class OwnStep(keras.Model):
    """A train_step that does not scale its loss, two optimizers, and a number that is not a metric."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = keras.layers.Dense(8, "gelu"), keras.layers.Dense(4)
        self.other = keras.optimizers.SGD(0.05)

    def call(self, x: Any) -> Any:
        return self.second(self.first(x))

    def train_step(self, data: Any) -> Numbers:
        x, y = data
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(y, self(x), from_logits=True)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients[:2], self.first.trainable_variables)
        self.other.apply(gradients[2:], self.second.trainable_variables)
        return {"own_loss": loss}


@scenario
def own_train_step(own: Own, folder: Path) -> Numbers:
    def make() -> Any:
        keras.utils.set_random_seed(7)
        model = OwnStep()
        model(np.zeros((1, 12), "float32"))
        model.compile(keras.optimizers.SGD(0.1))
        model.other.build(model.second.trainable_variables)
        return model

    model = own(make)
    history = model.fit(X[:96], Y[:96], batch_size=32, epochs=2, verbose=0, shuffle=False).history
    return {**history, **{f"weight{number}": weight for number, weight in enumerate(model.get_weights())}}


@scenario
def auc_and_precision(own: Own, folder: Path) -> Numbers:
    def make() -> Any:
        keras.utils.set_random_seed(8)
        model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(1, "sigmoid")])
        metrics = [keras.metrics.AUC(name="auc"), keras.metrics.Precision(name="precision")]
        model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy", metrics=metrics)
        return model

    labels, validation = (Y > 1).astype("float32")[:, None], (VALIDATION_Y > 1).astype("float32")[:, None]
    return fit(own(make), y=labels, validation_data=(VALIDATION_X, validation))


@scenario
def compiled_again(own: Own, folder: Path) -> Numbers:
    model = own(build())
    fit(model, epochs=1)
    with getattr(model, "scope_of_test", contextlib.nullcontext)():
        compile_model(model, lambda: keras.optimizers.SGD(0.05))
    return fit(model)


@scenario
def one_batch_at_a_time(own: Own, folder: Path) -> Numbers:
    model = own(build())
    logs = [model.train_on_batch(X[start : start + 32], Y[start : start + 32]) for start in range(0, 97, 32)]
    tested = model.test_on_batch(VALIDATION_X, VALIDATION_Y)
    return {"trained": np.array(logs), "tested": np.array(tested)}


@scenario
def steps_per_execution(own: Own, folder: Path) -> Numbers:
    return fit(own(build(steps_per_execution=2)))


@scenario
def gradient_accumulation_steps(own: Own, folder: Path) -> Numbers:
    return fit(own(build(lambda: keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))))
