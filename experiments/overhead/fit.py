"""One worker of `overhead` for `model.fit`: its epochs and those of a loop of our steps, interleaved in one job."""

from __future__ import annotations

import gc
import itertools
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from ...adapters import Batch, Training, create_strategy
from ..progress import tell
from .models_keras import build_data, build_model, build_optimizer, check_same, loss_fn
from .shapes import SHAPES

_EPOCH = 3200  # samples a worker: 50 steps of the small and the medium model, 12 of the large one
_WARM_UP = 2  # epochs: `fit` and our loop compile their steps in the first
_LEAST = 12  # pairs of epochs


def bench_fit(strategy_name: str, model_name: str, pairs: int, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds a step of each pair of epochs on this worker; the pairs have at least `pairs` steps.

    They are `{"ours": [...], "raw": [...]}`: `fit`, and the loop of our steps on the same engine that it is held
    against. Both load the same arrays.

    Raises:
        RuntimeError: the two sides did not train the same model, so their times say nothing of each other.
    """
    from ...plugins.keras import distribute

    shape = SHAPES[model_name]
    steps = _EPOCH // shape.batch
    epochs = _WARM_UP + max(_LEAST, math.ceil(pairs / steps))
    with create_strategy(strategy_name, **options) as strategy, strategy.scope():
        global_batch_size = shape.batch * strategy.worker.world_size
        fit_model, loop_model = build_model(shape), build_model(shape)
        fit_model.compile(build_optimizer(), loss="mean_squared_error")
        model = distribute(fit_model, strategy)
        training = strategy.prepare(loop_model, build_optimizer(), loss_fn)
        inputs, targets = data = build_data(shape, steps, strategy.worker.world_size)
        batches = training.batches(data, global_batch_size, epochs=epochs, shuffle=False)
        loop = _LoopAfterEpoch(training, batches, steps)
        model.fit(
            inputs, targets, batch_size=global_batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=[loop]
        )
        check_same(model, loop_model)
    return {"ours": loop.fit_seconds[_WARM_UP:], "raw": loop.loop_seconds[_WARM_UP:]}


class _LoopAfterEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Times each epoch of `fit`, and after it one of our loop: one call of `fit`, which sets itself up once."""

    def __init__(self, training: Training, batches: Iterator[Batch], steps: int) -> None:
        super().__init__()
        self.fit_seconds: list[float] = []
        self.loop_seconds: list[float] = []
        self._training = training
        self._batches = batches
        self._steps = steps
        self._started = 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        tell(f"epoch {epoch} of {self.params['epochs']}")
        if epoch == _WARM_UP:
            # What compiling left takes Python's collector most of a second to look through, on either side by chance.
            gc.collect()
            gc.freeze()
        self._started = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        ended = time.perf_counter()
        for batch in itertools.islice(self._batches, self._steps):
            self._training.step(batch)
        self.fit_seconds.append((ended - self._started) / self._steps)
        self.loop_seconds.append((time.perf_counter() - ended) / self._steps)
