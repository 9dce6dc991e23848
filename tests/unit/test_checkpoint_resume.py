"""Checkpoints: what is restored, and that training continues as if it had not stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_training import Make, adamw, failure, manifest_of, net, prepare, sgd, snapshot, step_lr, train, two_groups
from torch import nn
from torch.optim import lr_scheduler

from farandole.adapters import Progress, Strategy, Training


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "checkpoint"


OPTIMIZERS: dict[str, Make] = {
    "sgd": sgd,
    "momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
    "adamw": adamw,
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.02),
    "adafactor": lambda model: torch.optim.Adafactor(model.parameters(), lr=0.02),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=0.02, centered=True),
    "two groups": two_groups,
    "a tensor as rate": lambda model: torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.02)),
    "a NumPy number as rate": lambda model: torch.optim.AdamW(model.parameters(), lr=np.float64(0.02)),
}
SCHEDULERS: dict[str, Make] = {
    "step": step_lr,
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


def test_a_manifest_says_what_wrote_it_and_what_is_in_it(strategy: Strategy, path: Path) -> None:
    training = prepare(strategy, net(), scheduler=step_lr)
    train(training, steps=1)
    training.save(path, Progress(3, 2))
    manifest = manifest_of(path)
    said = {
        name: manifest[name] for name in ("format", "framework", "strategy", "world_size", "optimizer", "scheduler")
    }
    assert said == {
        "format": 2,
        "framework": "torch",
        "strategy": "local",
        "world_size": 1,
        "optimizer": "AdamW",
        "scheduler": "StepLR",
    }
    assert manifest["progress"] == {"epoch": 3, "step": 2}
    assert manifest["tensors"]["model/0.weight"] == {"shape": [6, 4], "dtype": "float32"}
    assert manifest["tensors"]["optimizer/0.weight/exp_avg"] == {"shape": [6, 4], "dtype": "float32"}
    assert manifest["tensors"]["model/1.num_batches_tracked"] == {"shape": [], "dtype": "int64"}
    assert {file.name for file in path.iterdir()} == {"manifest.json", manifest["data"]}
    sizes = {file.name: file.stat().st_size for file in (path / manifest["data"]).iterdir()}
    assert sizes == {name: info["bytes"] for name, info in manifest["files"].items()}


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


def test_a_folder_may_be_given_as_text_and_is_made(
    strategy: Strategy, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(strategy, net()).save(str(path), Progress(1, 0))
    monkeypatch.chdir(tmp_path)
    assert prepare(strategy, net()).load("runs/checkpoint") == Progress(1, 0)


class Tied(nn.Module):
    """Two layers share a weight, one is frozen, and the state has a buffer and more of its own."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        if tied:
            self.outer.weight = self.inner.weight
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.scale = nn.Parameter(torch.rand(()))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
        self.note: Any = {"text": "a", "numbers": (1, 2.5), "tensor": torch.ones(2)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        output: torch.Tensor = self.frozen(self.outer(self.inner(x))) * self.scale
        return output

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


def test_tied_frozen_scalar_and_empty_parameters_buffers_and_extra_state_come_back(
    strategy: Strategy, path: Path
) -> None:
    whole = prepare(strategy, Tied())
    _, progress = train(whole, steps=3)
    whole.save(path, progress)
    assert manifest_of(path)["aliases"] == {"outer.weight": "inner.weight"}
    assert "model/outer.weight" not in manifest_of(path)["tensors"]
    rest, _ = train(whole, progress)

    resumed = prepare(strategy, Tied())
    resumed.model.note = None
    resumed.load(path)
    assert resumed.model.seen.tolist() == [6, 6]
    assert resumed.model.note["numbers"] == (1, 2.5) and resumed.model.note["tensor"].tolist() == [1, 1]
    assert resumed.model.outer.weight is resumed.model.inner.weight
    assert train(resumed, progress)[0] == rest
    assert snapshot(resumed) == snapshot(whole)


def test_what_is_tied_must_be_tied_here_too(strategy: Strategy, path: Path) -> None:
    prepare(strategy, Tied(), sgd).save(path, Progress())
    assert "'outer.weight' is tied" in failure(lambda: prepare(strategy, Tied(tied=False), sgd).load(path))


def test_a_training_in_another_precision_takes_rounded_values(strategy: Strategy, path: Path) -> None:
    whole = prepare(strategy, net().to(torch.bfloat16), sgd)
    whole.save(path, Progress())
    assert manifest_of(path)["tensors"]["model/0.weight"]["dtype"] == "bfloat16"
    resumed = prepare(strategy, net(seed=1).double(), sgd)
    resumed.load(path)
    for (name, value), (_, saved) in zip(resumed.weights(), whole.weights(), strict=True):
        assert torch.equal(value, saved.to(value.dtype)), name


def addresses(training: Training) -> dict[str, int]:
    tensors = dict(training.model.named_parameters()) | dict(training.model.named_buffers())
    for number, slots in enumerate(training.optimizer.state.values()):
        tensors |= {f"{number}/{name}": slot for name, slot in slots.items() if slot.dim()}
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def test_values_are_read_into_the_memory_that_is_there(strategy: Strategy, path: Path) -> None:
    training = prepare(strategy, net())
    _, progress = train(training, steps=2)
    training.save(path, progress)
    saved = snapshot(training)
    train(training, progress, steps=1)
    assert snapshot(training) != saved
    before = addresses(training)
    training.load(path)
    assert addresses(training) == before
    assert snapshot(training) == saved


def test_a_large_parameter_is_cut_into_files_of_32_mib(strategy: Strategy, path: Path) -> None:
    class Large(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.weight = nn.Parameter(torch.randn(7, 2_500_001))

    prepare(strategy, Large(0), sgd).save(path, Progress())
    sizes = [info["bytes"] for name, info in manifest_of(path)["files"].items() if name.endswith(".distcp")]
    assert sorted(size >> 20 for size in sizes) == [2, 32, 32]
    resumed = prepare(strategy, Large(1), sgd)
    resumed.load(path)
    assert torch.equal(resumed.model.weight, Large(0).weight)
