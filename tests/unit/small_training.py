"""A small training, and what the tests of checkpoints do with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler

from farandole.adapters import CheckpointError, Progress, Strategy, Training

Make = Callable[[Any], Any]


def net(seed: int = 0, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.GELU(), nn.Linear(width, 1))


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.02)


def two_groups(model: nn.Module) -> torch.optim.Optimizer:
    groups = [{"params": model[3].parameters(), "lr": 0.01}, {"params": model[0].parameters(), "weight_decay": 0.3}]
    return torch.optim.AdamW(groups, lr=0.02)


def step_lr(optimizer: Any) -> Any:
    return lr_scheduler.StepLR(optimizer, 3, 0.5)


def prepare(strategy: Strategy, model: nn.Module, optimizer: Make = adamw, scheduler: Make | None = None) -> Training:
    made = optimizer(model)
    return strategy.prepare(model, made, _loss, None if scheduler is None else scheduler(made), accumulate=2)


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


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
    return json.dumps(state, default=lambda value: value.tolist() if isinstance(value, torch.Tensor) else str(value))


def failure(act: Callable[[], Any]) -> str:
    """Return the message of `act`'s CheckpointError."""
    with pytest.raises(CheckpointError) as caught:
        act()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "weights_only" not in message  # a user must not be told to load what may run code
    return message


def content(path: Path) -> dict[str, bytes]:
    """Return all files in a folder, and in those inside it."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def manifest_of(path: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((path / "manifest.json").read_text())
    return manifest


def data_folder(path: Path) -> Path:
    return path / str(manifest_of(path)["data"])


def edit(path: Path, **changes: Any) -> None:
    (path / "manifest.json").write_text(json.dumps(manifest_of(path) | changes))
