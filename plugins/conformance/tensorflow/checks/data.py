"""Contract 3: every sample once, from arrays and from `tf.data` pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from .....adapters import Progress, Strategy, Training
from ... import curves
from ...variants import SEED, VARIANTS
from .table import TENSORFLOW

_LENGTH = 37


def _datasets(size: int) -> dict[str, Callable[[], Any]]:
    """Return functions that build a dataset of the first numbers."""

    def shuffled() -> tf.data.Dataset:
        return tf.data.Dataset.range(_LENGTH).shuffle(_LENGTH, seed=5)

    return {
        "array": lambda: np.arange(_LENGTH),
        "tf.data": shuffled,
        "tf.data, batched": lambda: shuffled().batch(size),
        "tf.data, same each epoch": lambda: shuffled().map(lambda number: number).cache().prefetch(2),
    }


def _samples(strategy: Strategy, training: Training, dataset: Any, size: int, start: Progress) -> dict[str, list[int]]:
    """Return the samples of each step, over all workers, by the position after it."""
    own: dict[str, list[int]] = {}
    for batch in training.batches(dataset, size, epochs=3, seed=SEED, start=start):
        real = [micro.numpy() for micro, weight in zip(batch.micro, batch.weights, strict=True) if weight]
        own[f"{batch.progress.epoch}/{batch.progress.step}"] = np.concatenate([[], *real]).astype(int).tolist()
    everyone = strategy.gather(own)
    assert all(other.keys() == own.keys() for other in everyone), "workers make different steps"
    return {step: [sample for other in everyone for sample in other[step]] for step in own}


@TENSORFLOW.add
def every_sample_comes_once(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["accumulate_4"], "float32")
    size = 2 * strategy.worker.world_size + 1
    per_epoch = -(-_LENGTH // size)
    for name, make in _datasets(size).items():
        steps = list(_samples(strategy, training, make(), size, Progress()).values())
        assert len(steps) == 3 * per_epoch, name
        for epoch in range(3):
            seen = [sample for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for sample in step]
            assert sorted(seen) == list(range(_LENGTH)), f"{name}, epoch {epoch}"
        assert steps[0] != steps[per_epoch] or name == "tf.data, same each epoch", f"{name}: an epoch is not reshuffled"


@TENSORFLOW.add
def data_resumes_where_it_stopped(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["accumulate_4"], "float32")
    size = 2 * strategy.worker.world_size + 1
    for name, make in _datasets(size).items():
        whole = _samples(strategy, training, make(), size, Progress())
        resumed = _samples(strategy, training, make(), size, Progress(1, 2))
        rest = {step: samples for step, samples in whole.items() if step in resumed}
        assert resumed == rest and len(resumed) == 2 * -(-_LENGTH // size) - 2, name


@TENSORFLOW.add
def samples_do_not_depend_on_the_worker(strategy: Strategy, folder: Path) -> dict[str, list[float]]:
    """Return the samples of each step and their random numbers, which must be the same at any world size."""
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")

    def noisy(number: Any) -> tuple[Any, Any]:
        return number, tf.random.stateless_uniform((), [SEED, number])

    drawn = {}
    for kind, dataset in (
        ("array", (np.arange(11), np.arange(11) / 2)),
        ("tf.data", tf.data.Dataset.range(11).shuffle(11, seed=3).map(noisy)),
    ):
        for batch in training.batches(dataset, 4, epochs=2, seed=SEED):
            key = f"{kind}/{batch.progress.epoch}/{batch.progress.step}"
            own = np.stack([column.numpy() for column in batch.micro[0]], 1).tolist() if batch.weights[0] else []
            drawn[key] = [value for share in strategy.gather(own) for sample in share for value in sample]
    assert len(drawn) == 12 and all(len(values) in (8, 6) for values in drawn.values())
    return drawn
