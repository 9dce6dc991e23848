"""Trainings of a model with everything that a converter must carry, by farandole and by plain DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

from farandole.adapters import Callback, Progress, Strategy, Training, create_strategy
from farandole.cli.main import main

deepspeed = pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

STAGES = pytest.mark.parametrize("stage", [1, 2, 3])
ALONE = pytest.mark.usefixtures("no_launcher", "one_thread")  # one process, without a launcher

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
Y = X.sum(1, keepdim=True)
SAVED, MORE = 4, 4


class Kept(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"n": 1}


class Zoo(nn.Module):
    """A tied weight, a frozen layer, buffers, and more state of its own; sizes that no number of workers divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5, bias=False)  # Adam would amplify the rounding of a bias before a normalization
        self.norm = nn.BatchNorm1d(5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.last = nn.Linear(5, 5)
        self.last.weight = self.first.weight
        self.head = nn.Linear(5, 1)
        self.register_buffer("third", torch.full((2,), 1 / 3, dtype=torch.float64))
        self.note = "new"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(functional.gelu(self.norm(self.first(x))))
        output: torch.Tensor = self.head(functional.gelu(self.last(hidden)))
        return output

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


Make = Callable[[nn.Module], torch.optim.Optimizer]


def groups(model: Any) -> list[dict[str, Any]]:
    """Two groups with other settings; the frozen layer is in one of them."""
    rest = [*model.norm.parameters(), *model.frozen.parameters(), *model.head.parameters(), model.last.bias]
    return [{"params": rest, "lr": 0.01, "weight_decay": 0.1}, {"params": [*model.first.parameters()]}]


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda model: torch.optim.AdamW(groups(model), lr=0.02),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02, amsgrad=True),
    "sgd": lambda model: torch.optim.SGD(groups(model), lr=0.02),
    "momentum": lambda model: torch.optim.SGD(groups(model), lr=0.02, momentum=0.9),
}


def decay(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.7)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def ours(strategy: Strategy, make: Make, schedule: bool = True) -> Training:
    model = Zoo()
    optimizer = make(model)
    scheduler = decay(optimizer) if schedule else None
    return strategy.prepare(model, optimizer, loss_of, scheduler, callbacks=[Kept()])


def train(training: Training, start: Progress, steps: int) -> list[float]:
    """Train on the whole data in each step."""
    batches = training.batches((X, Y), len(X), epochs=start.epoch + steps, start=start)
    return [float(training.step(batch)) for batch in batches]


def plain(stage: int, make: Make, schedule: bool = True, **zero: Any) -> Any:
    """An engine as any user of DeepSpeed makes it."""
    config = {
        "train_micro_batch_size_per_gpu": len(X),
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **zero},
    }
    model = Zoo()
    optimizer = make(model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=decay(optimizer) if schedule else None,
        config=config,
        dist_init_required=False,
    )
    return engine


def train_plain(engine: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = functional.mse_loss(engine(X), Y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def process_group() -> Strategy:
    """Return a strategy that only provides plain DeepSpeed's process group while it is entered."""
    return create_strategy("deepspeed_zero_1", device="cpu")


def save_ours(path: Path, make: Make, schedule: bool = True) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Save after some steps; return the losses and weights of the steps after that."""
    with create_strategy("local", device="cpu") as strategy:
        training = ours(strategy, make, schedule)
        training.model.note = "kept"
        train(training, Progress(), SAVED)
        training.save(path, Progress(SAVED, 0), {"best": 0.5})
        losses = train(training, Progress(SAVED, 0), MORE)
        return losses, {name: value.clone() for name, value in training.weights()}


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        state = engine.module.state_dict()
        return {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def convert(*words: object) -> str:
    result = CliRunner().invoke(main, ["checkpoint", "convert", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    result = CliRunner().invoke(main, ["checkpoint", "convert", *map(str, words)])
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr
