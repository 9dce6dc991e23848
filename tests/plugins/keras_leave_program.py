"""Trainings by `fit`, one after the other, that workers leave as the arguments say.

python keras_leave_program.py FOLDER WAY:WHO ...     WAY: return | exit0 | exit1 | raise | term; WHO: a rank | all

They leave in the second epoch, right after the begin of a save that does not wait. Keras has written the first epoch's
checkpoint by then. After a training that all leave, the next one begins.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np

from farandole.adapters import Progress, Strategy, Training, create_strategy
from farandole.plugins.keras import distribute
from farandole.plugins.launch.job import watch_stacks

POSITION = Progress(1, 2)


class Left(Exception):
    """Ends `fit` for a worker that then returns from its program."""


class Leave(keras.callbacks.Callback):  # type: ignore[misc]
    """Begins to save another training on all workers, and makes this one leave."""

    def __init__(self, training: Training, path: Path, way: str | None) -> None:
        super().__init__()
        self._training = training
        self._path = path
        self._way = way
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if Progress(self._epoch, batch + 1) == POSITION:
            self._training.save(self._path, POSITION, wait=False)
            if self._way is not None:
                print("FAULT\n", end="", flush=True)
                leave(self._way)


def leave(way: str) -> None:
    if way == "return":
        raise Left
    if way == "raise":
        raise ValueError("the mistake in the callback")
    if way == "term":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    sys.exit(int(way.removeprefix("exit")))


def build() -> Any:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "gelu"), keras.layers.Dense(1)])


def train(strategy: Strategy, folder: Path, way: str | None) -> None:
    with strategy.scope():
        model, other = build(), build()
        model.compile("sgd", "mse")
        training = strategy.prepare(other, keras.optimizers.SGD(0.1), lambda model, x: keras.ops.mean(model(x)))
    written = keras.callbacks.ModelCheckpoint(folder / "epoch.keras")
    x, y = np.ones((16, 4), "float32"), np.ones((16, 1), "float32")
    plugged = [written, Leave(training, folder / "saved", way)]
    distribute(model, strategy).fit(x, y, batch_size=4, epochs=3, verbose=0, callbacks=plugged)
    print("TRAINED", flush=True)


def main(folder: Path, trainings: list[str]) -> None:
    watch_stacks()
    for training in trainings:
        way, who = training.split(":")
        place = folder / f"{way}-{who}"
        place.mkdir(parents=True, exist_ok=True)
        try:
            with create_strategy() as strategy:
                try:
                    train(strategy, place, way if who in ("all", str(strategy.worker.rank)) else None)
                except Left:
                    continue
        except (ValueError, SystemExit):
            if training == trainings[-1]:
                raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
