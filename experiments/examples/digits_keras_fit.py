"""Train a small convolutional network to read scanned digits with `model.fit`, on any number of workers.

    farandole run --strategy tf_multiworker -n 2 digits_keras_fit.py
    horovodrun -np 2 python digits_keras_fit.py --strategy tf_horovod
    TF_CONFIG='{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}' \\
        python digits_keras_fit.py --strategy tf_multiworker    # on machine a; with index 1 on b

It differs from a program for one process in the three lines with `strategy`.
"""

from __future__ import annotations

import argparse

import keras
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from farandole.adapters import create_strategy
from farandole.plugins.keras import WorkerMetrics, distribute

GLOBAL_BATCH_SIZE = 64  # scans in a step, over all workers


def main() -> None:
    """Train, and print the accuracy on held-out scans."""
    arguments = argparse.ArgumentParser(description="Read scanned digits.")
    arguments.add_argument("--strategy", help="default: that of `farandole run`")
    arguments.add_argument("--epochs", type=int, default=10)
    options = arguments.parse_args()

    with create_strategy(options.strategy) as strategy:
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = build_model()
            model.compile(
                keras.optimizers.AdamW(3e-3, weight_decay=0.01),
                keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                metrics=["accuracy"],
            )
        distribute(model, strategy)
        digits = load_digits()
        images = digits.images[..., np.newaxis].astype(np.float32) / 16
        x, x_test, y, y_test = train_test_split(
            images, digits.target, test_size=297, random_state=0, stratify=digits.target
        )
        timing = WorkerMetrics()
        model.fit(
            x,
            y,
            batch_size=GLOBAL_BATCH_SIZE,
            epochs=options.epochs,
            validation_data=(x_test, y_test),
            callbacks=[keras.callbacks.EarlyStopping(patience=3, restore_best_weights=True), timing],
            verbose=2,
        )
        loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
        if strategy.worker.is_main:
            print(f"{strategy.name}: {accuracy:.1%} of {len(x_test)} scans read correctly, loss {loss:.4f}")
            print(f"where each worker's time went: {timing.folder}")


def build_model() -> keras.Model:
    """Return the network."""
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
        keras.layers.GroupNormalization(4),
        keras.layers.Activation("gelu"),
    )


if __name__ == "__main__":
    main()
