"""Saves that fail, or are killed: their messages, and that the checkpoint before stays."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import content, data_folder, failure, net, prepare, sgd, train
from torch import nn

from farandole.adapters import CheckpointError, Progress, Strategy, latest
from farandole.adapters.checkpoint.save import _Foreground


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "checkpoint"


CIRCULAR: dict[str, Any] = {}
CIRCULAR["self"] = CIRCULAR


@pytest.mark.parametrize(
    ("extras", "said"),
    [
        ({"at": object()}, "object is not JSON serializable"),
        ({"weights": torch.ones(2)}, "Tensor is not JSON serializable"),
        ({"seen": {1, 2}}, "set is not JSON serializable"),
        ({(1, 2): 3}, "keys must be str"),
        (CIRCULAR, "Circular reference"),
    ],
)
def test_extras_that_are_no_json_leave_the_previous_checkpoint(
    strategy: Strategy, path: Path, extras: dict[Any, Any], said: str
) -> None:
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1), {"first": 1})
    before = content(path)
    train(training, steps=1)
    message = failure(lambda: training.save(path, Progress(0, 2), extras))
    assert f"cannot save to {path} (worker 0)" in message
    assert said in message
    assert content(path) == before
    assert training.load(path) == Progress(0, 1)


@pytest.fixture
def file_size_limit() -> Iterator[Callable[[int], None]]:
    """Let writes beyond a size fail in this process, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def wide(seed: int = 0) -> nn.Sequential:
    return net(seed, width=60_000)


@pytest.mark.parametrize("room", [0, 100, 2_000, 300_000, 1_000_000])
@pytest.mark.parametrize("wait", [True, False], ids=["at once", "in the background"])
def test_a_save_that_runs_out_of_room_leaves_the_previous_checkpoint_and_nothing_else(
    strategy: Strategy, path: Path, file_size_limit: Callable[[int], None], room: int, wait: bool
) -> None:
    training = prepare(strategy, wide())
    training.save(path, Progress(0, 1))
    before = content(path)
    train(training, steps=1)

    def save() -> None:
        training.save(path, Progress(0, 2), wait=wait)
        training.load(path)  # which waits for the save in the background

    file_size_limit(room)
    message = failure(save)
    assert f"cannot save to {path} (worker 0): OSError: " in message
    assert "File too large" in message
    assert content(path) == before
    assert len(list(path.iterdir())) == 2
    file_size_limit(resource.RLIM_INFINITY)
    assert prepare(strategy, wide(1)).load(path) == Progress(0, 1)


def test_a_first_save_that_fails_leaves_nothing_to_load(
    strategy: Strategy, path: Path, file_size_limit: Callable[[int], None]
) -> None:
    training = prepare(strategy, net())
    file_size_limit(100)
    failure(lambda: training.save(path, Progress(0, 2)))
    file_size_limit(resource.RLIM_INFINITY)  # what pytest prints now may go to a file
    assert list(path.iterdir()) == []
    assert "has no manifest.json" in failure(lambda: training.load(path))


def test_a_file_in_the_way_is_named(strategy: Strategy, path: Path) -> None:
    path.parent.mkdir()
    path.write_text("mine")
    training = prepare(strategy, net())
    assert str(path) in failure(lambda: training.save(path, Progress()))
    assert str(path) in failure(lambda: training.load(path))
    assert path.read_text() == "mine"


def test_a_save_replaces_the_one_before_and_what_crashed_ones_left(strategy: Strategy, path: Path) -> None:
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    (path / "data-0123456789abcdef").mkdir()
    (path / "data-0123456789abcdef" / "__0_0.distcp").write_bytes(b"torn")
    (path / "manifest.json.partial").write_bytes(b"torn")
    train(training, steps=1)
    training.save(path, Progress(0, 2))
    assert {file.name for file in path.iterdir()} == {"manifest.json", data_folder(path).name}
    assert prepare(strategy, net(1)).load(path) == Progress(0, 2)


def test_a_save_leaves_files_of_the_users_alone(strategy: Strategy, path: Path) -> None:
    names = {"data-of-mine/a.csv", "data-best/b.pt", "notes.txt", "other.manifest", "model.pt"}
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("mine")
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    training.save(path, Progress(0, 2))
    ours = {f"{data_folder(path).name}/{file.name}" for file in data_folder(path).iterdir()}
    assert content(path).keys() == names | {"manifest.json"} | ours


class Opinionated(nn.Linear):
    """Its state holds an object that only code can restore."""

    def get_extra_state(self) -> Any:
        return Path("opinion")

    def set_extra_state(self, state: Any) -> None:
        self.opinion = state


@pytest.mark.parametrize("wait", [True, False])
def test_a_state_that_no_load_would_give_back_is_not_saved(strategy: Strategy, path: Path, wait: bool) -> None:
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    before = content(path)
    other = prepare(strategy, nn.Sequential(Opinionated(4, 1)))
    assert "pathlib.PosixPath" in failure(lambda: other.save(path, Progress(0, 2), wait=wait))
    assert content(path) == before


# Saves for ever in a fork of itself, for each line that it reads: torch is imported once.
KILLED = """
import os, sys
import torch
from torch import nn
from farandole.adapters import Progress, create_strategy

def save():
    print(os.getpid(), flush=True)
    with create_strategy("local", device="cpu") as strategy:
        model = nn.Linear(1000, 8000)
        training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).mean())
        for step in range(10_000):
            nn.init.constant_(model.weight, float(step))
            training.save(sys.argv[1], Progress(0, step))
            print(step, flush=True)

torch.set_num_threads(1)
import farandole.adapters.torch.engines.local, torch._dynamo
for line in sys.stdin:
    child = os.fork()
    if not child:
        save()
    os.waitpid(child, 0)
    print("killed", flush=True)
"""


@pytest.fixture
def saving(path: Path) -> Iterator[subprocess.Popen[str]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    argv = [sys.executable, "-c", KILLED, str(path)]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environ
    ) as program:
        yield program
        program.kill()


def test_a_save_that_is_killed_leaves_the_previous_checkpoint(
    strategy: Strategy, path: Path, saving: subprocess.Popen[str]
) -> None:
    """Killed while a data file grows, at another moment each time."""
    assert saving.stdin is not None and saving.stdout is not None
    torn: list[Path] = []
    for attempt in range(3):
        saving.stdin.write("again\n")
        process = int(saving.stdout.readline())
        committed = [int(saving.stdout.readline()) for _ in range(1 + attempt)][-1]
        name = data_folder(path).name
        deadline = time.monotonic() + 30
        while not any(file.parent.name > name for file in path.glob("data-*/*.distcp")):
            assert time.monotonic() < deadline
        os.kill(process, signal.SIGKILL)
        while saving.stdout.readline() != "killed\n":
            pass
        torn += [folder for folder in path.glob("data-*") if folder != data_folder(path)]
        training = prepare(strategy, nn.Linear(1000, 8000), sgd)
        progress = training.load(path)
        assert progress.step >= committed
        assert (training.model.weight == progress.step).all()
        assert latest(path) == str(path)
    assert torn
    training.save(path, Progress(7, 7))
    assert {file.name for file in path.iterdir()} == {"manifest.json", data_folder(path).name}


def test_what_a_save_failed_of_is_told_where_sigterm_ends_the_program() -> None:
    """The main thread's own error is not printed then: the process ends before."""
    save = _Foreground("here", "data-1")
    with pytest.raises(CheckpointError, match="disk is full"), save:
        raise CheckpointError("cannot save to here (worker 0): the disk is full")
    assert save.finish(time.monotonic()) == "cannot save to here (worker 0): the disk is full"
