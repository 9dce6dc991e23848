"""One worker: train a small model, sleep before each step if it is the last one, and measure the waiting."""

from __future__ import annotations

import time
from statistics import median

from ...adapters import Callback, StepRecord, create_strategy
from ...plugins.conformance.curves import prepare
from ...plugins.conformance.framework import program_of
from ...plugins.conformance.variants import GLOBAL_BATCH, VARIANTS

_WARM_UP = 10  # steps, in which engines do their set-up, and TensorFlow compiles


class _Watcher(Callback):
    watches = frozenset({"wait"})

    def __init__(self) -> None:
        self.waits: list[float] = []

    def on_step_end(self, step: StepRecord) -> None:
        self.waits.append(step.seconds("wait"))


def measure(name: str, delay: float, steps: int) -> dict[str, float]:
    """Return the medians of this worker's waiting, and of its own delay, both in seconds."""
    variant, watcher, slept = VARIANTS["adamw"], _Watcher(), []
    with create_strategy(name) as strategy:
        delayed = strategy.worker.rank == strategy.worker.world_size - 1
        training = prepare(strategy, variant, "float32", [watcher])
        data = program_of(strategy).dataset(variant, "float32")
        batches = training.batches(data, GLOBAL_BATCH, epochs=_WARM_UP + steps, seed=0)
        for _, batch in zip(range(_WARM_UP + steps), batches, strict=False):
            started = time.perf_counter()
            if delayed:
                time.sleep(delay)
            slept.append(time.perf_counter() - started)
            float(training.step(batch))
    return {"wait": median(watcher.waits[_WARM_UP:]), "delay": median(slept[_WARM_UP:])}
