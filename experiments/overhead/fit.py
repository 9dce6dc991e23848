"""One worker of `overhead` for `model.fit`: its epochs and those of a loop of our steps, interleaved in one job."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from ...adapters import Batch, Training, create_strategy
from .models_keras import build_data, build_model, build_optimizer, check_same, loss_fn
from .shapes import SHAPES
from .turns import Turns


def bench_fit(strategy_name: str, model_name: str, pairs: int, options: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the seconds per step of each pair of epochs on this worker; the pairs have at least `pairs` steps.

    They are `{"ours": [...], "raw": [...]}`: `fit`, and the loop of our steps on the same engine. Both load the same
    arrays.

    Raises:
        RuntimeError: the two sides did not train the same model, so their times cannot be compared.
    """
    from ...plugins.keras import distribute

    shape = SHAPES[model_name]
    turns = Turns(shape, pairs)
    epochs = turns.epochs
    with create_strategy(strategy_name, **options) as strategy, strategy.scope():
        global_batch_size = shape.batch * strategy.worker.world_size
        fit_model, loop_model = build_model(shape), build_model(shape)
        fit_model.compile(build_optimizer(), loss="mean_squared_error")
        model = distribute(fit_model, strategy)
        training = strategy.prepare(loop_model, build_optimizer(), loss_fn)
        inputs, targets = data = build_data(shape, turns.steps, strategy.worker.world_size)
        batches = training.batches(data, global_batch_size, epochs=epochs, shuffle=False)
        loop = _LoopAfterEpoch(turns, training, batches)
        model.fit(
            inputs, targets, batch_size=global_batch_size, epochs=epochs, shuffle=False, verbose=0, callbacks=[loop]
        )
        check_same(model, loop_model)
    return turns.seconds()


class _LoopAfterEpoch(keras.callbacks.Callback):  # type: ignore[misc]
    """Times each epoch of `fit`, and after it one of our loop, in a single call of `fit`."""

    def __init__(self, turns: Turns, training: Training, batches: Iterator[Batch]) -> None:
        super().__init__()
        self._turns = turns
        self._training = training
        self._batches = batches

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._turns.begin()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        self._turns.end(self._train)

    def _train(self) -> None:
        for batch in itertools.islice(self._batches, self._turns.steps):
            self._training.step(batch)
