"""Contract 6: portable state."""

from __future__ import annotations

import json
import re
import resource
from pathlib import Path

import numpy as np
import pytest

from ....adapters import (
    CheckpointError,
    Progress,
    Strategy,
    Training,
    latest,
)
from .. import curves
from ..framework import program_of
from ..variants import LOSS_BOUND, VARIANTS, WEIGHT_BOUND
from .common import SHARED, batches_of, same_weights, weights_of

# 6. Portable state.


@SHARED.add
def resumed_run_is_the_same_run(strategy: Strategy, folder: Path) -> None:
    variant, path = VARIANTS["schedule"], folder / "resume"
    dtype = "float64" if "float64" in strategy.capabilities.dtypes else "float32"
    whole = curves.prepare(strategy, variant, dtype)
    _, middle = curves.train(strategy, whole, variant, dtype, steps=33)
    whole.save(path, middle, extras={"best": 0.5, "tags": ["a"]})
    rest, _ = curves.train(strategy, whole, variant, dtype, start=middle, steps=20)
    fresh = curves.prepare(strategy, variant, dtype)
    found = fresh.load(path)
    assert found == middle and fresh.extras == {"best": 0.5, "tags": ["a"]}
    resumed, _ = curves.train(strategy, fresh, variant, dtype, start=found, steps=20)
    # Not to the bit: Horovod fuses gradients in any order, and so the order of three workers' sums varies.
    assert rest.loss_diff(resumed) <= LOSS_BOUND[dtype]
    assert rest.weight_diff(resumed) <= WEIGHT_BOUND[dtype]


@SHARED.add
def dropout_resumes_too(strategy: Strategy, folder: Path) -> None:
    def build() -> Training:
        with strategy.scope():
            return strategy.prepare(*program_of(strategy).dropout_net())

    data, losses = np.linspace(-1, 1, 96, dtype=np.float32).reshape(24, 4), []
    whole, path = build(), folder / "dropout"
    for number, batch in enumerate(whole.batches(data, 6, epochs=2)):
        losses.append(float(whole.step(batch)))
        if number == 4:
            whole.save(path, batch.progress)
    resumed = build()
    assert resumed.load(path) == resumed.progress == Progress(1, 1)
    left = resumed.batches(data, 6, epochs=2)
    assert len(left) == 3
    again = [float(resumed.step(batch)) for batch in left]
    assert resumed.progress == Progress(2, 0)
    assert losses[5:] == pytest.approx(again, rel=1e-5)


@SHARED.add
def failed_save_leaves_the_previous_one(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "previous"
    training.save(path, Progress(1, 2))
    with pytest.raises(CheckpointError, match="not JSON serializable"):
        training.save(path, Progress(3, 4), extras={"bad": object()})
    blocked = folder / "a_file"
    if strategy.worker.is_main:
        blocked.write_text("in the way")
    strategy.barrier()
    with pytest.raises(CheckpointError, match="worker 0"):
        training.save(blocked, Progress())
    assert training.load(path) == Progress(1, 2)


@SHARED.add
def bad_checkpoints_are_refused_by_all(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["adamw"], "float32"), folder / "bad"
    with pytest.raises(CheckpointError, match="is not there"):
        training.load(folder / "nowhere")
    training.save(path, Progress())
    other = curves.prepare(strategy, VARIANTS["unused_parameter"], "float32")
    added = weights_of(other).keys() - weights_of(training).keys()
    with pytest.raises(CheckpointError, match="|".join(map(re.escape, added))):
        other.load(path)
    if strategy.worker.is_main:
        manifest = json.loads((path / "manifest.json").read_text())
        (path / "manifest.json").write_text(json.dumps({**manifest, "format": 999}))
    strategy.barrier()
    with pytest.raises(CheckpointError, match="newer"):
        training.load(path)
    strategy.barrier()
    if strategy.worker.is_main:
        (path / "manifest.json").unlink()
    strategy.barrier()
    with pytest.raises(CheckpointError, match="no manifest"):
        training.load(path)


@SHARED.add
def damaged_files_are_refused_by_all(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "damaged"
    training.save(path, Progress(1, 2))
    before = weights_of(training)
    training.step(next(batches_of(strategy, training)))
    changed = weights_of(training)
    data = path / str(json.loads((path / "manifest.json").read_text())["data"])
    file = max(data.glob(program_of(strategy).TENSOR_FILES), key=lambda file: file.name)  # the last worker's
    content = file.read_bytes()
    strategy.barrier()
    if strategy.worker.is_main:
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    strategy.barrier()
    with pytest.raises(CheckpointError, match=f"{file.name} is damaged"):
        training.load(path)
    strategy.barrier()
    if strategy.worker.is_main:
        file.unlink()
    strategy.barrier()
    with pytest.raises(CheckpointError, match=f"{file.name} is missing"):
        training.load(path)
    after = weights_of(training)
    assert same_weights(changed, after), "a refused load changed the weights"
    strategy.barrier()
    if strategy.worker.is_main:
        file.write_bytes(content)
    strategy.barrier()
    assert training.load(path) == Progress(1, 2)
    loaded = weights_of(training)
    assert same_weights(before, loaded)


@SHARED.add
def save_in_the_background_is_of_its_moment(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "background"
    batches = batches_of(strategy, training)
    training.step(next(batches))
    before = weights_of(training)
    training.save(path / "first", Progress(0, 1), wait=False)
    training.step(next(batches))
    training.save(path / "second", Progress(0, 2), wait=False, keep=2)
    training.step(next(batches))
    assert training.load(path / "first") == Progress(0, 1)
    loaded = weights_of(training)
    assert same_weights(before, loaded)
    assert latest(path) == str(path / "second")
    training.save(path / "third", Progress(0, 3), keep=1)
    assert latest(path) == str(path / "third") and [file.name for file in path.iterdir()] == ["third"]


@SHARED.add
def full_disk_of_one_worker_fails_the_save_of_all(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "full"
    training.save(path, Progress(0, 1))
    last = strategy.worker.world_size - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(wait: bool) -> None:
        training.save(path, Progress(0, 2), wait=wait)
        training.load(path)  # which waits for a save with wait=False

    for wait in (True, False):
        if strategy.worker.rank == last:  # writes fail beyond this size, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        with pytest.raises(CheckpointError, match=f"cannot save to .* .worker {last}.: .*File too large"):
            save(wait)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert training.load(path) == Progress(0, 1)
        assert len(list(path.iterdir())) == 2, "a save that failed left something"
