"""Keep the workers of a `fit` together: at the start, at the end of each epoch, and for files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from ...adapters.tensorflow.strategy import TensorFlowStrategy

_WRITERS = (
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.CSVLogger,
    keras.callbacks.TensorBoard,
    keras.callbacks.RemoteMonitor,
)


def callbacks_of(callbacks: Any, strategy: TensorFlowStrategy) -> list[Any]:
    """Return the callbacks that this worker calls: those that write files only on rank 0."""
    given: Sequence[Any] = keras.tree.flatten(callbacks) if callbacks else []
    if strategy.worker.is_main:
        return list(given)
    kept = [callback for callback in given if not isinstance(callback, _WRITERS)]
    return [Replica(c) if isinstance(c, keras.callbacks.BackupAndRestore) else c for c in kept]


class Agreement(keras.callbacks.Callback):  # type: ignore[misc]
    """Starts all workers from rank 0's state, by calling `start`, and stops them all if one of them stops."""

    def __init__(self, strategy: TensorFlowStrategy, start: Callable[[], None]) -> None:
        super().__init__()
        self._strategy = strategy
        self._start = start

    def on_train_begin(self, logs: Any = None) -> None:
        self._start()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        # A reason on some workers only (a clock, a file) must not leave the others waiting in the next step.
        self.model.stop_training = bool(self._strategy.reduce(int(self.model.stop_training), "max"))


class Replica(keras.callbacks.Callback):  # type: ignore[misc]
    """A `BackupAndRestore` on a worker other than rank 0: it restores rank 0's backup."""

    def __init__(self, backup: keras.callbacks.BackupAndRestore) -> None:
        super().__init__()
        self._backup = backup

    def on_train_begin(self, logs: Any = None) -> None:
        self._backup.set_model(self.model)
        self._backup.on_train_begin(logs)
