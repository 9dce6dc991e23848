"""Checkpoints: what comes back, what a failed save leaves, and what is never loaded."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from farandole.adapters import CheckpointError, Progress, Strategy, Training, create_strategy

LAUNCHERS = ("HOROVOD_", "OMPI_", "SLURM_", "TF_CONFIG", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """More of them are slower with tensors this small, and much slower on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def strategy() -> Iterator[Strategy]:
    with create_strategy("local", device="cpu") as strategy, strategy.scope():
        yield strategy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "checkpoint"


def net(seed: int = 0, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, 1))


def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


Make = Callable[[Any], Any]


def prepare(strategy: Strategy, model: nn.Module, optimizer: Make = adamw, scheduler: Make | None = None) -> Training:
    made = optimizer(model)
    return strategy.prepare(model, made, loss_fn, None if scheduler is None else scheduler(made), accumulate=2)


def train(training: Training, start: Progress = Progress(), steps: int | None = None) -> tuple[list[float], Progress]:
    """Train to the end of the second epoch, or for `steps` steps; return the losses and the last progress."""
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    losses, progress = [], start
    for batch in training.batches((x, x.sum(1, keepdim=True)), 8, epochs=2, start=start):
        losses.append(float(training.step(batch)))
        progress = batch.progress
        if len(losses) == steps:
            break
    return losses, progress


def snapshot(training: Training) -> Any:
    state = {"model": training.model.state_dict(), "optimizer": training.optimizer.state_dict()}
    return json.dumps(state, default=lambda tensor: tensor.tolist())


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": model[3].parameters(), "lr": 0.01}, {"params": model[0].parameters(), "weight_decay": 0.3}]
    return torch.optim.AdamW(groups, lr=0.02)


OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.02),
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
    "adamw": adamw,
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.02),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.02, centered=True),
    "two groups": two_groups,
    "a tensor as rate": lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.02)),
    "a NumPy number as rate": lambda model: torch.optim.AdamW(model.parameters(), lr=np.float64(0.02)),
}
SCHEDULERS: dict[str, Make] = {
    "step": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.5),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=10),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 3), lr_scheduler.CosineAnnealingLR(o, 8)], [3]
    ),
    "a NumPy number": lambda o: lr_scheduler.ExponentialLR(o, np.float64(0.9)),
}


@pytest.mark.parametrize(
    ("optimizer", "scheduler"),
    [
        *(pytest.param(make, None, id=name) for name, make in OPTIMIZERS.items()),
        *(pytest.param(adamw, make, id=f"scheduler: {name}") for name, make in SCHEDULERS.items()),
    ],
)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_resumed_training_goes_on_exactly(
    strategy: Strategy, path: Path, optimizer: Make, scheduler: Make | None, steps: int
) -> None:
    whole = prepare(strategy, net(), optimizer, scheduler)
    losses, progress = train(whole, steps=steps) if steps else ([], Progress())
    whole.save(path, progress)
    rest, end = train(whole, progress)

    resumed = prepare(strategy, net(seed=1), optimizer, scheduler)
    assert resumed.load(path) == progress
    assert train(resumed, progress) == (rest, end)
    assert len(losses) + len(rest) == 8
    assert snapshot(resumed) == snapshot(whole)


def test_a_checkpoint_of_replicas_names_what_wrote_it(strategy: Strategy, path: Path) -> None:
    prepare(strategy, net()).save(path, Progress(3, 2))
    manifest = json.loads((path / "manifest.json").read_text())
    expected = {"format": 1, "framework": "torch", "strategy": "local", "world_size": 1}
    assert manifest.items() >= expected.items()
    assert manifest["progress"] == {"epoch": 3, "step": 2}
    assert {file.name for file in path.iterdir()} == {"manifest.json", manifest["data"]}


@pytest.mark.parametrize(
    "extras",
    [None, {}, {"best": 0.25, "history": [1, 2.5, None, True], "nested": {"name": "é", "empty": {}}}],
    ids=["none", "empty", "all of JSON"],
)
def test_extras_come_back(strategy: Strategy, path: Path, extras: dict[str, Any] | None) -> None:
    prepare(strategy, net()).save(path, Progress(), extras)
    training = prepare(strategy, net())
    training.extras = {"left": "over"}
    training.load(path)
    assert training.extras == (extras or {})


def test_a_folder_may_be_given_as_text_and_is_made(strategy: Strategy, path: Path) -> None:
    prepare(strategy, net()).save(str(path), Progress(1, 0))
    assert prepare(strategy, net()).load(str(path)) == Progress(1, 0)


def failure(act: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as caught:
        act()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "weights_only" not in message  # a user must not be told to load what may run code
    return message


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


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
    """Let writes beyond a size fail in this process, as they do on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100, 2000])
def test_a_save_that_runs_out_of_room_leaves_the_previous_checkpoint_and_nothing_else(
    strategy: Strategy, path: Path, file_size_limit: Callable[[int], None], room: int
) -> None:
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    before = content(path)
    train(training, steps=1)
    file_size_limit(room)
    message = failure(lambda: training.save(path, Progress(0, 2)))
    assert "File too large" in message
    assert content(path) == before


def test_a_first_save_that_fails_leaves_nothing_to_load(
    strategy: Strategy, path: Path, file_size_limit: Callable[[int], None]
) -> None:
    training = prepare(strategy, net())
    file_size_limit(100)
    failure(lambda: training.save(path, Progress(0, 2)))
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
    for name in ("state-0123456789abcdef.pt", "state-fedcba9876543210.pt", "state-fedcba9876543210.pt.manifest"):
        (path / name).write_bytes(b"torn")
    train(training, steps=1)
    training.save(path, Progress(0, 2))
    assert {file.name for file in path.iterdir()} == {"manifest.json", data_file(path).name}
    assert prepare(strategy, net(1)).load(path) == Progress(0, 2)


def test_a_save_leaves_files_of_the_users_alone(strategy: Strategy, path: Path) -> None:
    path.mkdir(parents=True)
    names = {"state-of-the-art.csv", "state-best.pt", "notes.txt", "other.manifest", "model.pt"}
    for name in names:
        (path / name).write_text("mine")
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    training.save(path, Progress(0, 2))
    assert {file.name for file in path.iterdir()} == names | {"manifest.json", data_file(path).name}


def data_file(path: Path) -> Path:
    return path / json.loads((path / "manifest.json").read_text())["data"]


def test_a_state_file_that_no_manifest_names_is_ignored(strategy: Strategy, path: Path) -> None:
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    committed = data_file(path)
    (path / "state-ffffffffffffffff.pt").write_bytes(b"torn")
    assert prepare(strategy, net(1)).load(path) == Progress(0, 1)
    (path / "manifest.json").unlink()
    assert committed.exists()
    message = failure(lambda: training.load(path))
    assert f"{path} has no manifest.json: no save to it was ever finished" in message


def test_a_checkpoint_that_is_not_there_is_named(strategy: Strategy, path: Path) -> None:
    assert f"{path} is not there" in failure(lambda: prepare(strategy, net()).load(path))


@pytest.fixture
def saved(strategy: Strategy, path: Path) -> Path:
    training = prepare(strategy, net(), scheduler=SCHEDULERS["step"])
    _, progress = train(training, steps=3)
    training.save(path, progress)
    return path


def refusal(strategy: Strategy, path: Path, *make: Any) -> str:
    """What a load of `path` says when it fails, having changed nothing."""
    training = prepare(strategy, *make) if make else prepare(strategy, net(1), scheduler=SCHEDULERS["step"])
    train(training, steps=1)
    training.extras = {"own": 1}
    before = snapshot(training)
    message = failure(lambda: training.load(path))
    assert f"cannot load {path} (worker 0)" in message
    assert (snapshot(training), training.extras) == (before, {"own": 1})
    return message


def test_the_checkpoint_that_these_tests_damage_can_be_loaded(strategy: Strategy, saved: Path) -> None:
    assert prepare(strategy, net(1), scheduler=SCHEDULERS["step"]).load(saved) == Progress(0, 3)


@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_data_file_is_refused(strategy: Strategy, saved: Path, keep: float) -> None:
    file = data_file(saved)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    assert f"{file} is damaged" in refusal(strategy, saved)


def test_a_data_file_of_something_else_is_refused(strategy: Strategy, saved: Path) -> None:
    data_file(saved).write_bytes(b"GIF89a" + bytes(500))
    assert f"{data_file(saved)} is damaged" in refusal(strategy, saved)


def test_a_missing_data_file_is_named(strategy: Strategy, saved: Path) -> None:
    file = data_file(saved)
    file.unlink()
    assert f"{file} is missing" in refusal(strategy, saved)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False], ids=["in torch's archive", "in a bare pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    strategy: Strategy, saved: Path, tmp_path: Path, archive: bool
) -> None:
    file, folder = data_file(saved), tmp_path / "bombed"
    state = torch.load(file, weights_only=True) | {"model": Bomb(folder)}
    with file.open("wb") as opened:
        torch.save(state, opened) if archive else pickle.dump(state, opened)
    message = refusal(strategy, saved)
    assert not folder.exists()
    assert "could run code" in message
    torch.load(file, weights_only=False) if archive else pickle.loads(file.read_bytes())
    assert folder.exists()  # the bomb was live


def edited(path: Path, **changes: Any) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_newer_format_asks_for_an_upgrade(strategy: Strategy, saved: Path) -> None:
    edited(saved, format=2)
    assert f"{saved} has format 2, newer than this Farandole's 1: upgrade it" in refusal(strategy, saved)


def test_another_frameworks_checkpoint_is_refused(strategy: Strategy, saved: Path) -> None:
    edited(saved, framework="tensorflow")
    assert "was saved by tensorflow, not by PyTorch" in refusal(strategy, saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": 1, "framework": "torch"}', '{"format": "x"}'])
def test_a_damaged_manifest_is_refused(strategy: Strategy, saved: Path, text: str) -> None:
    (saved / "manifest.json").write_text(text)
    assert f"{saved / 'manifest.json'} is damaged" in refusal(strategy, saved)


@pytest.mark.parametrize("progress", [{"epoch": -1, "step": 0}, {"rank": 1}, [], None])
def test_a_progress_that_cannot_be_is_refused(strategy: Strategy, saved: Path, progress: Any) -> None:
    edited(saved, progress=progress)
    refusal(strategy, saved)


def with_one_layer_more() -> nn.Sequential:
    return nn.Sequential(*net(), nn.Linear(1, 1))


def with_one_layer_less() -> nn.Sequential:
    first, _, third, last = net()
    return nn.Sequential(first, nn.Identity(), third, last)


def reversed_groups(model: nn.Module) -> torch.optim.Optimizer:
    first, second = two_groups(model).param_groups
    return torch.optim.AdamW([{"params": second["params"]}, {"params": first["params"]}])


@pytest.mark.parametrize(
    ("make_model", "optimizer", "scheduler", "said"),
    [
        (lambda: net(width=7), adamw, "step", "shape (6,) in the checkpoint, (7,) in the model"),
        (with_one_layer_more, adamw, "step", "' is not in the checkpoint"),
        (with_one_layer_less, adamw, "step", "' is not in the model"),
        (net, OPTIMIZERS["sgd"], "step", "its optimizer is AdamW, but this training uses SGD"),
        (net, two_groups, "step", "its optimizer groups parameters in another way"),
        (net, adamw, "one cycle", "its scheduler is StepLR, but this training uses OneCycleLR"),
        (net, adamw, None, "its scheduler is StepLR, but this training uses none"),
    ],
)
def test_what_does_not_fit_this_training_is_refused(
    strategy: Strategy, saved: Path, make_model: Any, optimizer: Make, scheduler: str | None, said: str
) -> None:
    make_scheduler = None if scheduler is None else SCHEDULERS[scheduler]
    assert said in refusal(strategy, saved, make_model(), optimizer, make_scheduler)


def test_a_scheduler_that_the_checkpoint_does_not_have_is_refused(strategy: Strategy, path: Path) -> None:
    prepare(strategy, net()).save(path, Progress())
    message = refusal(strategy, path, net(), adamw, SCHEDULERS["step"])
    assert "its scheduler is none, but this training uses StepLR" in message


def test_the_order_of_groups_matters(strategy: Strategy, path: Path) -> None:
    prepare(strategy, net(), two_groups).save(path, Progress())
    assert "groups parameters in another way" in refusal(strategy, path, net(), reversed_groups)


class Opinionated(nn.Linear):
    """Its state holds an object that only code can bring back."""

    def get_extra_state(self) -> Any:
        return Path("opinion")

    def set_extra_state(self, state: Any) -> None:
        self.opinion = state


def test_a_state_that_no_load_would_give_back_is_not_saved(strategy: Strategy, path: Path) -> None:
    training = prepare(strategy, net())
    training.save(path, Progress(0, 1))
    before = content(path)
    other = prepare(strategy, nn.Sequential(Opinionated(4, 1)))
    assert "pathlib.PosixPath" in failure(lambda: other.save(path, Progress(0, 2)))
    assert content(path) == before
