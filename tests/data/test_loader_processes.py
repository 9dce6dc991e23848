"""How loader processes are started next to an engine, and the error in a program that does not allow it."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from farandole.adapters import Progress, Worker
from farandole.adapters.errors import DataError
from farandole.adapters.order import GlobalOrder
from farandole.adapters.torch.data import StepLoader
from farandole.adapters.torch.loader_processes import spawn_where_it_would_fork
from farandole.plugins.launch.job import run_marked

LENGTH = 6
FORKS_BY_DEFAULT = pytest.mark.skipif(
    multiprocessing.get_all_start_methods()[0] != "fork", reason="this Python forks nothing unasked"
)


class Mapped(Dataset[Any]):
    """Sample i is function(i)."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return self.function(index)


def loaded(dataset: Any, options: Mapping[str, Any], may_fork: bool = False, start: Progress = Progress()) -> list[Any]:
    """The one worker's micro-batches, as lists."""
    order = GlobalOrder(LENGTH, 2, seed=0, shuffle=False)
    loader = StepLoader(dataset, order, Worker(), 1, start, 1, options, may_fork)
    return [micro[0].tolist() for _, _, _, micro in loader]


@pytest.mark.parametrize("told", [{}, {"multiprocessing_context": None}, {"num_workers": np.int64(1)}], ids=str)
def test_processes_are_spawned_where_nobody_said_how_to_start_them(told: dict[str, Any]) -> None:
    loader: DataLoader[Any] = DataLoader(Mapped(abs), **{"num_workers": 1, **told})
    spawn_where_it_would_fork(loader)
    assert loader.multiprocessing_context.get_start_method() == "spawn"


@pytest.mark.parametrize(
    ("may_fork", "options", "forks"),
    [
        (False, {"num_workers": 0}, False),
        (False, {"num_workers": 1, "multiprocessing_context": "fork"}, True),
        pytest.param(True, {"num_workers": 1}, True, marks=FORKS_BY_DEFAULT),
    ],
    ids=["in this process", "forked because told", "forked beside no threads"],
)
def test_otherwise_nothing_is_pickled(may_fork: bool, options: dict[str, Any], forks: bool) -> None:
    this = os.getpid()
    parts = loaded(Mapped(lambda index: (os.getppid() if forks else os.getpid()) == this), options, may_fork)
    assert parts == [[True] * 2] * 3


def test_tensors_reach_spawned_processes() -> None:
    assert loaded(torch.arange(LENGTH), {"num_workers": 1}) == [[0, 1], [2, 3], [4, 5]]


def a_lock() -> Any:
    return Mapped(multiprocessing.get_context("fork").Lock())


@pytest.mark.filterwarnings("ignore:Got pickle error")
@pytest.mark.parametrize(
    ("context", "make", "words"),
    [
        (None, lambda: Mapped(lambda index: index), "lambda"),
        ("forkserver", lambda: Mapped(lambda index: index), "lambda"),
        (multiprocessing.get_context("spawn"), a_lock, "SemLock"),
    ],
    ids=["a function", "a function, for a fork server", "a lock"],
)
def test_data_that_cannot_be_pickled_is_an_error_with_the_ways_out(context: Any, make: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"{words}.*num_workers=0.*multiprocessing_context='fork'"):
        loaded(make(), {"num_workers": 1, "multiprocessing_context": context})


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(DataError, match="cannot start at step 99"):
        loaded(torch.arange(LENGTH), {"num_workers": 1}, start=Progress(0, 99))


UNGUARDED = """
import torch
from farandole.adapters import create_strategy

with create_strategy("local", device="cpu") as strategy:
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = strategy.prepare(model, optimizer, lambda model, batch: model(batch).mean())
    for batch in training.batches(torch.ones(8, 1), 2, num_workers=1, multiprocessing_context="spawn"):
        training.step(batch)
        print("a step was trained", flush=True)
"""


def test_a_script_that_trains_when_it_is_imported_is_told_where_to_put_it(tmp_path: Path) -> None:
    """A spawned process imports the script: without the guard it would join the job as a worker."""
    script = tmp_path / "train.py"
    script.write_text(UNGUARDED)
    job = run_marked([sys.executable, str(script)], timeout=120)
    assert job.returncode == 1, job.describe()
    assert "StrategyStateError: this script enters a strategy as soon as it is imported" in job.output
    assert "called under `if __name__ == '__main__':`" in job.output
    assert "exited unexpectedly" in job.output
    assert "a step was trained" not in job.output
    assert job.survivors == ()


@pytest.mark.parametrize("context", ["spawn", pytest.param("fork", marks=pytest.mark.exhaustive)])
def test_they_outlive_a_sigterm_that_all_processes_get_and_end_with_their_parent(context: str) -> None:
    """The program ends with the loader's iterator open, so that multiprocessing ends its process, by SIGTERM."""
    program = Path(__file__).with_name("loader_program.py")
    job = run_marked([sys.executable, str(program), context], timeout=100)
    assert job.returncode == 0, job.describe()
    assert job.output.split("\n")[:-1] == ["LOADER 0", "ASKED TO END", "READ 7"], job.describe()
    assert job.survivors == ()
