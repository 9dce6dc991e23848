"""What the contract asks of a strategy beside its curve, one function a promise, run inside a job by every worker.

A check raises `AssertionError` where the promise is broken. All workers run all checks in the same order; a check must
leave the job usable for the next. Paths given to checks are shared by the workers of the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import random
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ...adapters import (
    CheckpointError,
    DataError,
    FarandoleError,
    OptionError,
    Progress,
    Strategy,
    StrategyStateError,
    Training,
    create_strategy,
    latest,
)
from . import curves, program
from .variants import LOSS_BOUND, SEED, VARIANTS, WEIGHT_BOUND

Check = Callable[[Strategy, Path], Any]

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


def same_everywhere(strategy: Strategy, value: Any) -> bool:
    """Whether all workers hold the same bytes."""
    arrays = [np.asarray(tensor.detach().cpu()).tobytes() for tensor in value]
    return all(other == arrays for other in strategy.gather(arrays))


# 1. Same curve (the curves themselves are compared outside the job).


@check
def replicas_stay_equal_to_the_bit(strategy: Strategy, folder: Path) -> None:
    variant = VARIANTS["adamw"]
    training = curves.prepare(strategy, variant, "float32")
    curves.train(training, variant, "float32", steps=7)
    assert same_everywhere(strategy, _weights(training).values())


@check
def workers_start_from_rank_0(strategy: Strategy, folder: Path) -> None:
    class Drawn(nn.BatchNorm1d):
        def __init__(self, seed: int) -> None:
            super().__init__(3)
            stream = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.weight, generator=stream)
            self.get_buffer("running_mean").normal_(generator=stream)

    with strategy.scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of BatchNorm, which has a check of its own
        model = Drawn(strategy.worker.rank)
        training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).mean())
    expected, found = Drawn(0), _weights(training)
    assert torch.equal(found["weight"], expected.weight)
    assert torch.equal(found["running_mean"], expected.get_buffer("running_mean"))


@check
def loss_is_one_number_that_waits_to_be_read(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    losses = [training.step(batch) for batch in _batches(training, steps=3)]
    read = [float(loss) for loss in losses]
    assert strategy.gather(read) == [read] * strategy.worker.world_size
    assert losses[0] == read[0] and f"{losses[0]:.3f}" == f"{read[0]:.3f}" and sum(map(float, losses)) == sum(read)
    if strategy.worker.is_main:  # reading is local: one worker may, alone
        assert math.isfinite(float(training.step(next(_batches(training)))))
    else:
        training.step(next(_batches(training)))


@check
def accumulation_keeps_gradients_at_home(strategy: Strategy, folder: Path) -> None:
    if not strategy.capabilities.accumulates_locally or not hasattr(strategy, "wrap"):
        return
    model = nn.Linear(1, 1, bias=False)
    engine = strategy.wrap(model, torch.optim.SGD(model.parameters(), lr=0.5), accumulate=3)
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    for step in range(3):
        engine.zero_grad()
        for number in range(3):
            last = number == 2
            with contextlib.nullcontext() if last else engine.no_sync():
                engine.backward(engine.forward(torch.full((1, 1), float(rank + 1))).sum())
            if step > 0 and not last:  # DDP's static graph is recorded by a first step that synchronizes throughout
                assert _value(model.weight.grad) == (rank + 1) * (number + 1), "a gradient travelled too early"
        before = model.weight.item()
        engine.reduce_gradients()
        engine.update()
        mean = 3 * (world_size + 1) / 2
        assert before - model.weight.item() == pytest.approx(0.5 * mean, rel=1e-6)


# 2. Legal differences are named, the rest refused.


@check
def parameter_used_by_some_workers_gets_the_mean(strategy: Strategy, folder: Path) -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rank_0_only, self.never = (nn.Parameter(torch.ones(3)) for _ in range(3))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            used = self.always.sum() + (self.rank_0_only.sum() if strategy.worker.is_main else 0)
            return used + 0.0 * batch.sum()

    with strategy.scope():
        model = Partial()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x))
    for batch in training.batches(torch.zeros(12, 1), 6, epochs=2):
        training.step(batch)
    weights = _weights(training)
    assert torch.equal(weights["never"], torch.ones(3)), "a parameter without a gradient was updated"
    assert (weights["rank_0_only"] < 0.95).all(), "a parameter that one worker used was not updated"
    assert same_everywhere(strategy, weights.values())


@check
def stand_in_leaves_no_trace(strategy: Strategy, folder: Path) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    with strategy.scope(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(15, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    warned = any("BatchNorm" in str(warning.message) for warning in caught)
    assert warned == (world_size > 1), "unsynchronized BatchNorm is to be warned of, on several workers"
    full, short = training.batches(torch.randn(2 * world_size + 1, 3, 5), 2 * world_size)
    assert short.weights == ((1.0,) if rank == 0 else (0.0,))
    buffers = [buffer.clone() for buffer in model.buffers()]
    state = torch.random.get_rng_state()
    loss = training.step(dataclasses.replace(short, random_seed=None))
    untouched = all(map(torch.equal, buffers, model.buffers()))
    assert untouched == (rank > 0), "only a stand-in leaves buffers alone"
    assert torch.equal(state, torch.random.get_rng_state()) == (rank > 0), "only a stand-in draws nothing at random"
    assert math.isfinite(float(loss)) and math.isfinite(float(training.step(full)))


@check
def refuses_what_has_no_mean(strategy: Strategy, folder: Path) -> None:
    with strategy.scope():
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        alien = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        with pytest.raises(OptionError, match="optimizer holds parameters"):
            strategy.prepare(model, alien, lambda m, x: m(x).mean())
        with pytest.raises(OptionError, match="accumulate"):
            strategy.prepare(model, optimizer, lambda m, x: m(x).mean(), accumulate=0)
        with pytest.raises(OptionError, match="clip_norm"):
            strategy.prepare(model, optimizer, lambda m, x: m(x).mean(), clip_norm=-1.0)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).mean())
    with pytest.raises(DataError, match="length 0"):
        training.batches(torch.zeros(0, 1), 4)
    with pytest.raises(DataError, match="add up to 0"):
        training.step(next(training.batches(torch.zeros(8, 1), 8, weight=lambda _: 0)))
    if strategy.worker.world_size > 1:
        with pytest.raises(OptionError, match="smaller than the"):
            training.batches(torch.zeros(8, 1), strategy.worker.world_size - 1)


# 3. Every sample once.


@check
def every_sample_comes_once(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["accumulate_4"], "float32")
    length, size = 37, 2 * strategy.worker.world_size + 1
    for start in (Progress(), Progress(1, 2)):
        own: dict[int, list[int]] = {epoch: [] for epoch in range(3)}
        epoch = start.epoch
        for batch in training.batches(torch.arange(length), size, epochs=3, seed=2, start=start, num_workers=1):
            for micro, weight in zip(batch.micro, batch.weights, strict=True):
                own[epoch] += micro.tolist() if weight else []
            epoch = batch.progress.epoch
        for epoch, parts in enumerate(zip(*(rank.values() for rank in strategy.gather(own)), strict=True)):
            seen = sorted(index for part in parts for index in part)
            if epoch > start.epoch or start == Progress():
                assert seen == list(range(length)), f"epoch {epoch} from {start}"
            elif epoch == start.epoch:
                assert len(seen) == len(set(seen)) == length - start.step * size


@check
def samples_know_no_worker(strategy: Strategy, folder: Path) -> dict[str, float]:
    """Returns what each sample drew at random, which must be the same at any world size."""

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 11

        def __getitem__(self, index: int) -> tuple[int, float]:
            return index, random.random() + float(np.random.rand()) + float(torch.rand(()))

    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    drawn = {}
    for number, batch in enumerate(training.batches(Noisy(), 4, epochs=2, seed=SEED)):
        if batch.weights[0]:
            for index, value in zip(*batch.micro[0], strict=True):
                drawn[f"{number // 3}/{int(index)}"] = float(value)
    everything = {key: value for part in strategy.gather(drawn) for key, value in part.items()}
    assert len(everything) == 22 and len(set(everything.values())) == 22
    return dict(sorted(everything.items()))


# 4. The learning rate is the user's.


@check
def learning_rate_is_the_users(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    assert [group["lr"] for group in training.optimizer.param_groups] == [0.05], "the learning rate was changed"
    batches = _batches(training)
    training.step(next(batches))
    before = _weights(training)
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    training.step(next(batches))
    after = _weights(training)
    assert all(torch.equal(before[name], after[name]) for name in before), "a rate of 0 does not reach the engine"


# 5. Collectives.


@check
def collectives_do_what_they_say(strategy: Strategy, folder: Path) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    ranks = range(world_size)
    mine: dict[str, Any] = {
        "number": rank + 0.5,
        "list": [np.arange(3) + rank, torch.full((2,), float(rank))],
        "count": 2**40 + rank,
    }
    total = strategy.reduce(mine, "sum")
    assert total["number"] == sum(r + 0.5 for r in ranks)
    assert total["count"] == sum(2**40 + r for r in ranks) and isinstance(total["count"], int)
    assert isinstance(total["list"][0], np.ndarray) and (total["list"][0] == sum(np.arange(3) + r for r in ranks)).all()
    mean = strategy.reduce(mine)
    assert mean["list"][1].tolist() == [sum(ranks) / world_size] * 2
    assert mean["count"] == pytest.approx(2**40 + sum(ranks) / world_size, rel=1e-15)
    assert strategy.reduce(rank, "max") == world_size - 1 and strategy.reduce(rank, "min") == 0
    assert mine["list"][1].tolist() == [float(rank)] * 2, "a reduction changed its argument"
    assert strategy.reduce(torch.tensor(257.0, dtype=torch.bfloat16), "sum").dtype == torch.bfloat16
    assert strategy.gather({"rank": rank, "text": "x" * rank}) == [{"rank": r, "text": "x" * r} for r in ranks]
    kinds = strategy.gather(None if rank == 0 else "another type")
    assert kinds == [None] + ["another type"] * (world_size - 1)
    for root in ranks:
        assert strategy.broadcast(("from", rank), root) == ("from", root)
    with pytest.raises(OptionError, match="no worker"):
        strategy.broadcast(1, root=world_size)
    with pytest.raises(OptionError, match="average"):
        strategy.reduce(1, "average")  # type: ignore[arg-type]


@check
def barrier_blocks(strategy: Strategy, folder: Path) -> None:
    strategy.barrier()
    started = time.monotonic()
    if strategy.worker.rank == strategy.worker.world_size - 1:
        time.sleep(0.3)
    strategy.barrier()
    assert time.monotonic() - started > 0.25


# 6. Portable state.


@check
def resumed_run_is_the_same_run(strategy: Strategy, folder: Path) -> None:
    variant, path = VARIANTS["schedule"], folder / "resume"
    dtype = "float64" if "float64" in strategy.capabilities.dtypes else "float32"
    whole = curves.prepare(strategy, variant, dtype)
    _, middle = curves.train(whole, variant, dtype, steps=33)
    whole.save(path, middle, extras={"best": 0.5, "tags": ["a"]})
    rest, _ = curves.train(whole, variant, dtype, start=middle, steps=20)
    fresh = curves.prepare(strategy, variant, dtype)
    found = fresh.load(path)
    assert found == middle and fresh.extras == {"best": 0.5, "tags": ["a"]}
    resumed, _ = curves.train(fresh, variant, dtype, start=found, steps=20)
    # Not to the bit: Horovod fuses gradients as they come, and three workers add them up in varying order.
    assert rest.loss_diff(resumed) <= LOSS_BOUND[dtype]
    assert rest.weight_diff(resumed) <= WEIGHT_BOUND[dtype]


@check
def dropout_resumes_too(strategy: Strategy, folder: Path) -> None:
    def build() -> Training:
        with strategy.scope():
            torch.manual_seed(3)
            model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            return strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())

    data, losses = torch.linspace(-1, 1, 96).reshape(24, 4), []
    whole, path = build(), folder / "dropout"
    for number, batch in enumerate(whole.batches(data, 6, epochs=2)):
        losses.append(float(whole.step(batch)))
        if number == 4:
            whole.save(path, batch.progress)
    resumed = build()
    again = [float(resumed.step(b)) for b in resumed.batches(data, 6, epochs=2, start=resumed.load(path))]
    assert losses[5:] == pytest.approx(again, rel=1e-5)


@check
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


@check
def bad_checkpoints_are_refused_by_all(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "bad"
    with pytest.raises(CheckpointError, match="is not there"):
        training.load(folder / "nowhere")
    training.save(path, Progress())
    other = curves.prepare(strategy, VARIANTS["unused_parameter"], "float32")
    with pytest.raises(CheckpointError, match="spare"):
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


@check
def damaged_files_are_refused_by_all(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "damaged"
    training.save(path, Progress(1, 2))
    before = _weights(training)
    training.step(next(_batches(training)))
    changed = _weights(training)
    data = path / str(json.loads((path / "manifest.json").read_text())["data"])
    file = max(data.glob("*.distcp"), key=lambda file: file.name)  # the last worker's
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
    after = _weights(training)
    assert all(torch.equal(changed[name], after[name]) for name in changed), "a refused load changed the weights"
    strategy.barrier()
    if strategy.worker.is_main:
        file.write_bytes(content)
    strategy.barrier()
    assert training.load(path) == Progress(1, 2)
    loaded = _weights(training)
    assert all(torch.equal(before[name], loaded[name]) for name in before)


@check
def save_in_the_background_is_of_its_moment(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "background"
    batches = _batches(training)
    training.step(next(batches))
    before = _weights(training)
    training.save(path / "first", Progress(0, 1), wait=False)
    training.step(next(batches))
    training.save(path / "second", Progress(0, 2), wait=False, keep=2)
    training.step(next(batches))
    assert training.load(path / "first") == Progress(0, 1)
    loaded = _weights(training)
    assert all(torch.equal(before[name], loaded[name]) for name in before)
    assert latest(path) == str(path / "second")
    training.save(path / "third", Progress(0, 3), keep=1)
    assert latest(path) == str(path / "third") and [file.name for file in path.iterdir()] == ["third"]


@check
def full_disk_of_one_worker_fails_the_save_of_all(strategy: Strategy, folder: Path) -> None:
    training, path = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32"), folder / "full"
    training.save(path, Progress(0, 1))
    last = strategy.worker.world_size - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def save(wait: bool) -> None:
        training.save(path, Progress(0, 2), wait=wait)
        training.load(path)  # which waits for a save that did not

    for wait in (True, False):
        if strategy.worker.rank == last:  # writes fail beyond this size, as they do on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
        with pytest.raises(CheckpointError, match=f"cannot save to .* .worker {last}.: .*File too large"):
            save(wait)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert training.load(path) == Progress(0, 1)
        assert len(list(path.iterdir())) == 2, "a save that failed left something"


# 8. No silent fallback.


@check
def a_strategy_is_used_once_and_inside(strategy: Strategy, folder: Path) -> None:
    with pytest.raises(StrategyStateError, match="create a new one"):
        strategy.__enter__()
    with pytest.raises(StrategyStateError, match="inside"):
        create_strategy(strategy.name).barrier()
    with pytest.raises(FarandoleError, match="no option"):
        create_strategy(strategy.name, no_such_option=1)


def _weights(training: Training) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in training.weights()}


def _value(tensor: torch.Tensor | None) -> float:
    assert tensor is not None
    return tensor.item()


def _batches(training: Training, steps: int = 1_000_000) -> Any:
    data = program.dataset(VARIANTS["sgd_momentum"], torch.float32)
    return (batch for batch, _ in zip(training.batches(data, 16, epochs=9), range(steps), strict=False))
