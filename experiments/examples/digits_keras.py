"""Train a small convolutional network to read scanned digits, with Keras, under every TensorFlow strategy.

    farandole run --strategy tf_multiworker -n 2 digits_keras.py

It is `digits_torch.py` with a Keras model, optimizer and loss. The curve, and so the network, is the same with every
strategy and number of workers.
"""

# Only public imports, so that you can start from a copy of this file.
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, SupportsFloat

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from farandole.adapters import Batch, create_strategy

GLOBAL_BATCH_SIZE = 64  # scans in a step, over all workers
Array = np.ndarray[Any, Any]
Scans = tuple[Array, Array]  # images (N, 8, 8, 1) from 0 to 1, and their digits (N,)


def train(epochs: int = 10, on_step: Callable[[Batch, SupportsFloat], None] | None = None) -> float:
    """Train under the strategy that this process was started for; return the accuracy on held-out scans."""
    training_scans, test_scans = load_scans()
    with create_strategy() as strategy, strategy.scope():
        keras.utils.set_random_seed(0)
        model = build_model()
        steps = epochs * math.ceil(len(training_scans[0]) / GLOBAL_BATCH_SIZE)
        schedule = keras.optimizers.schedules.CosineDecay(3e-3, steps)
        optimizer = keras.optimizers.AdamW(schedule, weight_decay=0.01)
        training = strategy.prepare(model, optimizer, loss_fn)
        for batch in training.batches(training_scans, GLOBAL_BATCH_SIZE, epochs=epochs, seed=0):
            loss = training.step(batch)
            if on_step is not None:
                on_step(batch, loss)
        result: float = training.evaluate(test_scans, accuracy, GLOBAL_BATCH_SIZE)
        if strategy.worker.is_main:
            print(f"{strategy.name}: {result:.1%} of {len(test_scans[0])} scans read correctly")
    return result


def load_scans() -> tuple[Scans, Scans]:
    """Return 1500 scans to train on and 297 to test on."""
    digits = load_digits()
    images = digits.images[..., np.newaxis].astype(np.float32) / 16
    labels = digits.target
    training, test = train_test_split(range(len(labels)), test_size=297, random_state=0, stratify=labels)
    return (images[training], labels[training]), (images[test], labels[test])


def build_model() -> keras.Model:
    """Return the network. It is smooth: ReLU and max pooling would make the curve sensitive to rounding."""
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *convolution(16),
            *convolution(32),
            keras.layers.AveragePooling2D(2),
            *convolution(64),
            keras.layers.AveragePooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def convolution(outputs: int) -> tuple[keras.layers.Layer, ...]:
    """Return a 3 x 3 convolution, normalized within each scan: the same on any number of workers."""
    return (
        keras.layers.Conv2D(outputs, 3, padding="same", use_bias=False),
        keras.layers.GroupNormalization(4, epsilon=1e-5),
        keras.layers.Activation("gelu"),
    )


def loss_fn(model: keras.Model, scans: Scans) -> Any:
    """Return the mean loss of a micro-batch."""
    images, labels = scans
    outputs = model(images, training=True)
    return keras.ops.mean(keras.ops.sparse_categorical_crossentropy(labels, outputs, from_logits=True))


def accuracy(model: keras.Model, scans: Scans) -> Any:
    """Return the model's accuracy on a micro-batch."""
    images, labels = scans
    found = keras.ops.argmax(model(images, training=False), axis=1)
    return keras.ops.mean(keras.ops.cast(keras.ops.equal(found, labels), "float32"))


if __name__ == "__main__":
    train()
