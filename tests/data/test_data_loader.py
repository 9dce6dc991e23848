"""The order of samples through a real DataLoader: loader processes, prefetching and a resume in mid-epoch."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import Dataset, TensorDataset, get_worker_info

from farandole.adapters import Batch, Progress, Strategy, Training, Worker, create_strategy
from farandole.adapters.order import GlobalOrder
from farandole.adapters.torch.data import StepLoader

LAUNCHERS = ("FARANDOLE_STRATEGY", "HOROVOD_", "OMPI_", "SLURM_", "TF_CONFIG", "RANK", "WORLD_SIZE", "LOCAL_RANK")
WORKERS = {"num_workers": 2}
START = Progress()
# Loader processes are slow to start: few examples, each of a whole job, and a failing one is reported as it is found.
PROPERTY = settings(
    deadline=None,
    database=None,
    max_examples=8,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.fixture
def strategy() -> Iterator[Strategy]:
    with create_strategy("local", device="cpu") as strategy, strategy.scope():
        yield strategy


def prepare(strategy: Strategy, accumulate: int = 1) -> Training:
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return strategy.prepare(model, optimizer, lambda model, batch: model(batch).mean(), accumulate=accumulate)


def published(length: int, batch: int, seed: int, epochs: int) -> list[tuple[int, int, list[int]]]:
    """(epoch, step, samples) of a whole run, by the published definition of the order."""
    run = []
    for epoch in range(epochs):
        stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
        order = [int(index) for index in stream.permutation(length)]
        run += [(epoch, number, order[first : first + batch]) for number, first in enumerate(range(0, length, batch))]
    return run


class Numbers(Dataset[int]):
    """Sample i is i, and is sometimes slow, so that loader processes overtake each other."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        assert get_worker_info() is not None, "this ran in the training process"
        if index % 5 == 0:
            time.sleep(0.01)
        return index


DATASETS = {
    "a map-style dataset": Numbers,
    "a TensorDataset": lambda length: TensorDataset(torch.arange(length)),
    "a tensor": torch.arange,
    "an array": np.arange,
    "a tuple": lambda length: (torch.arange(length), np.arange(length)),
    "a dict of arrays": lambda length: {"x": np.arange(length), "y": np.arange(length)},
}


def samples(micro_batch: Any) -> list[int]:
    """The numbers in a micro-batch of any of these datasets."""
    if isinstance(micro_batch, dict):
        micro_batch = list(micro_batch.values())
    if isinstance(micro_batch, torch.Tensor):
        micro_batch = [micro_batch]
    columns = [column.tolist() for column in micro_batch]
    assert all(column == columns[0] for column in columns)
    return list(columns[0])


def counted(batch: Batch) -> list[int]:
    """The samples of a batch that count, in order."""
    return [i for part, weight in zip(batch.micro, batch.weights, strict=True) if weight for i in samples(part)]


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    return WORKERS | {"prefetch_factor": draw(st.integers(1, 4)), "persistent_workers": draw(st.booleans())}


@PROPERTY
@given(st.data())
@pytest.mark.parametrize("kind", DATASETS)
def test_a_training_gets_each_sample_once_wherever_it_resumes(
    strategy: Strategy, kind: str, data: st.DataObject
) -> None:
    length, size = data.draw(st.integers(1, 40), label="length"), data.draw(st.integers(1, 12), label="global batch")
    accumulate, seed = data.draw(st.integers(1, 3), label="accumulate"), data.draw(st.integers(0, 99), label="seed")
    run = published(length, size, seed, epochs=2)
    first = data.draw(st.integers(0, len(run) - 1), label="first step")
    start = Progress(*run[first][:2])
    batches = list(
        prepare(strategy, accumulate).batches(
            DATASETS[kind](length), size, epochs=2, seed=seed, start=start, **data.draw(options(), label="options")
        )
    )
    assert [counted(batch) for batch in batches] == [expected for _, _, expected in run[first:]]
    assert [sum(batch.weights) for batch in batches] == [len(expected) for _, _, expected in run[first:]]
    following = [Progress(epoch, step) for epoch, step, _ in run[first + 1 :]]
    assert [batch.progress for batch in batches] == [*following, Progress(2, 0)]


@PROPERTY
@given(st.data())
def test_workers_together_get_each_sample_once_wherever_they_resume(data: st.DataObject) -> None:
    length, size = data.draw(st.integers(1, 40), label="length"), data.draw(st.integers(1, 12), label="global batch")
    world, accumulate = data.draw(st.integers(2, 3), label="workers"), data.draw(st.integers(1, 3), label="accumulate")
    kind, seed = data.draw(st.sampled_from(sorted(DATASETS))), data.draw(st.integers(0, 99), label="seed")
    run = published(length, size, seed, epochs=2)
    first = data.draw(st.integers(0, len(run) - 1), label="first step")
    chosen = data.draw(options(), label="options")
    order = GlobalOrder(length, size, seed)
    dataset, start = DATASETS[kind](length), Progress(*run[first][:2])
    workers = [
        list(StepLoader(dataset, order, Worker(rank, world), accumulate, start, 2, chosen)) for rank in range(world)
    ]
    for place, (epoch, step, expected) in enumerate(run[first:]):
        parts = [worker[place] for worker in workers]
        assert all((part[0], part[1]) == (epoch, step) for part in parts)
        assert all(len(micro) == len(weights) == accumulate for _, _, weights, micro in parts)
        pairs = [pair for _, _, weights, micro in parts for pair in zip(weights, map(samples, micro), strict=True)]
        assert [index for weight, taken in pairs if weight for index in taken] == expected
        assert all(weight in (0, len(taken)) for weight, taken in pairs)
    assert {len(worker) for worker in workers} == {len(run) - first}


def test_progress_is_what_was_trained_on_and_never_what_was_fetched_ahead(strategy: Strategy) -> None:
    """Stop in mid-epoch when loader processes have fetched all that is left; resume with another way of loading."""
    run = published(length=30, batch=4, seed=1, epochs=2)
    taken, progress = [], START
    for batch in prepare(strategy, 2).batches(Numbers(30), 4, epochs=2, seed=1, prefetch_factor=8, **WORKERS):
        taken.append(counted(batch))
        progress = batch.progress
        if len(taken) == 5:
            break
    assert progress == Progress(0, 5)
    rest = prepare(strategy).batches(torch.arange(30), 4, epochs=2, seed=1, start=progress)
    assert taken + [counted(batch) for batch in rest] == [expected for _, _, expected in run]


def collate(items: list[int]) -> tuple[str, int, list[int]]:
    worker = get_worker_info()
    assert worker is not None
    return "collated", worker.id, items


def test_collate_fn_runs_in_the_loader_processes_on_each_micro_batch(strategy: Strategy) -> None:
    batches = list(
        prepare(strategy, 2).batches(
            Numbers(10), 5, shuffle=False, collate_fn=collate, persistent_workers=True, **WORKERS
        )
    )
    micro = [part for batch in batches for part in batch.micro]
    assert [(name, items) for name, _, items in micro] == [
        ("collated", items) for items in ([0, 1, 2], [3, 4], [5, 6, 7], [8, 9])
    ]
    assert {worker for _, worker, _ in micro} == {0, 1}


def begin(worker: int) -> None:
    os.environ["WORKER_THAT_BEGAN"] = str(worker)


class Environment(Numbers):
    def __getitem__(self, index: int) -> int:
        return int(os.environ["WORKER_THAT_BEGAN"])


def test_other_options_reach_the_dataloader(strategy: Strategy) -> None:
    given = {"worker_init_fn": begin, "timeout": 60, "multiprocessing_context": "fork", **WORKERS}
    batches = list(prepare(strategy).batches(Environment(8), 2, **given))
    assert {int(number) for batch in batches for number in batch.micro[0]} == {0, 1}


BROKEN = """
import torch
from farandole.adapters import create_strategy

class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3:
            raise KeyError("sample 3 is broken")
        return torch.ones(1)

with create_strategy("local", device="cpu") as strategy:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = strategy.prepare(model, optimizer, lambda model, batch: model(batch).mean())
    for batch in training.batches(Broken(), 2, shuffle=False, num_workers=2):
        training.step(batch)
        print(batch.progress, flush=True)
"""


def test_an_error_in_a_loader_process_ends_the_training_with_its_traceback_and_no_orphan() -> None:
    begun = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", BROKEN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert out == "Progress(epoch=0, step=1)\n"
    assert "KeyError: 'sample 3 is broken'" in err
    assert "in __getitem__" in err
    assert time.monotonic() - begun < 15 + 5  # torch is imported first
    assert [p for p in psutil.process_iter() if in_session(p, process.pid)] == []


def in_session(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session
    except ProcessLookupError:
        return False


@pytest.mark.parametrize("persistent", [False, True])
def test_loader_processes_end_with_the_loop_and_when_it_is_left(strategy: Strategy, persistent: bool) -> None:
    before = set(psutil.Process().children(recursive=True))
    for number, _ in enumerate(
        prepare(strategy).batches(Numbers(40), 4, epochs=2, persistent_workers=persistent, **WORKERS)
    ):
        assert len(set(psutil.Process().children(recursive=True)) - before) >= 2
        if number == 3:
            break
    _, alive = psutil.wait_procs(set(psutil.Process().children(recursive=True)) - before, timeout=10)
    assert alive == []


class Augmented(Dataset[Any]):
    """Sample (index, draws from the three streams); a sample may draw any number of times."""

    def __len__(self) -> int:
        return 13

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        for _ in range(index):
            random.random()
            np.random.rand()
            torch.rand(())
        return index, random.random(), float(np.random.rand()), float(torch.rand((), dtype=torch.float64))


def as_they_are(items: list[Any]) -> list[Any]:
    return items


Draws = dict[tuple[int, int], tuple[float, ...]]


def drawn(world: int, accumulate: int = 1, start: Progress = START, **options: Any) -> Draws:
    """What each (epoch, sample) drew."""
    order = GlobalOrder(13, 4, seed=3)
    return {
        (epoch, index): draws
        for rank in range(world)
        for epoch, _, weights, micro in StepLoader(
            Augmented(), order, Worker(rank, world), accumulate, start, 3, {"collate_fn": as_they_are, **options}
        )
        for weight, part in zip(weights, micro, strict=True)
        for index, *draws in part
        if weight
    }


def test_augmentation_is_the_same_with_and_without_loader_processes_on_any_number_of_workers() -> None:
    in_process = drawn(world=1)
    assert in_process.keys() == {(epoch, index) for epoch in range(3) for index in range(13)}
    assert drawn(world=1, **WORKERS) == in_process
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert drawn(world=3, accumulate=2, num_workers=1, persistent_workers=True) == in_process


def test_augmentation_after_a_resume_is_what_it_would_have_been() -> None:
    whole = drawn(world=1)
    resumed = drawn(world=2, start=Progress(1, 2), prefetch_factor=1, **WORKERS)
    remaining = [
        (epoch, index) for epoch, step, run in published(13, 4, 3, epochs=3) if (epoch, step) >= (1, 2) for index in run
    ]
    assert resumed == {place: whole[place] for place in remaining}


@pytest.mark.parametrize("options", [{}, WORKERS], ids=["in this process", "in loader processes"])
def test_loading_leaves_the_random_streams_of_the_training_alone(strategy: Strategy, options: dict[str, Any]) -> None:
    """These streams belong to the model, and must not depend on how data is loaded."""
    training = prepare(strategy)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    for _ in training.batches(Augmented(), 4, **options):
        pass
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == before
