"""Contract 10: gradient checkpointing changes no loss, weight or buffer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .....adapters import Callback, Strategy
from ....gradient_checkpointing import GradientCheckpointing
from ...checks.common import weights_of
from ..living import living_bytes
from .table import TORCH

_WIDTH = 8
_SLACK = 4096  # bytes that live beside what is saved for backward: losses, and what an engine makes of parameters
_DATA = torch.linspace(-1, 1, 13 * 4 * _WIDTH).sin().reshape(13, 4, _WIDTH)  # the last batch has one sample


class _Block(nn.Module):
    """With dropout, BatchNorm, a frozen layer, and keyword arguments; it counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.layers = nn.Sequential(nn.Linear(_WIDTH, 16), nn.GELU(), nn.Linear(16, _WIDTH, bias=False))
        self.gate = nn.Linear(_WIDTH, _WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.passes = 0

    def forward(self, x: torch.Tensor, *, scales: dict[str, Any]) -> torch.Tensor:
        self.passes += 1
        inner: torch.Tensor = self.layers(self.norm(x) * scales["first"]) * self.gate(x).sigmoid()
        dropped: torch.Tensor = self.dropout(inner * scales["second"])
        return x + dropped


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block() for _ in range(4))
        self.head = nn.Linear(_WIDTH, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, scales={"first": x.mean(), "second": 0.5})
        output: torch.Tensor = self.head(x)
        return output


def _loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    loss: torch.Tensor = (model(batch) - 1).square().mean()
    return loss


def _train(strategy: Strategy, callbacks: list[Callback]) -> tuple[list[float], dict[str, Any], list[int]]:
    """Return the losses, the weights, and the forward passes of the blocks."""
    with strategy.scope():
        torch.manual_seed(3)
        model: Any = _Net()
        for block in model.blocks[:2]:
            block.gate.requires_grad_(False)
        model.blocks[0].layers.requires_grad_(False)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
        training = strategy.prepare(model, optimizer, _loss, accumulate=2, clip_norm=1.0, callbacks=callbacks)
    losses = []
    for number, batch in enumerate(training.batches(_DATA, 6, epochs=2)):
        losses.append(float(training.step(batch)))
        if number == 2:
            losses.append(training.evaluate(_DATA, _loss, 6))
    return losses, weights_of(training), [block.passes for block in model.blocks]


@TORCH.add
def gradient_checkpointing_changes_nothing(strategy: Strategy, folder: Path) -> None:
    losses, weights, once = _train(strategy, [])
    again, checkpointed, twice = _train(strategy, [GradientCheckpointing()])
    assert all(computed > passes for computed, passes in zip(twice, once, strict=True)), "nothing was computed again"
    assert list(checkpointed) == list(weights)
    if strategy.worker.world_size < 3:
        assert again == losses
        assert all(np.array_equal(checkpointed[name], weight) for name, weight in weights.items())
    else:  # Horovod adds three workers' gradients in any order
        assert np.allclose(again, losses, rtol=1e-6)
        assert all(np.allclose(checkpointed[name], weight, rtol=1e-6, atol=1e-6) for name, weight in weights.items())


class _Deep(nn.Module):
    """Blocks with activations that are many times their parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(_WIDTH, 16), nn.GELU(), nn.Linear(16, _WIDTH), nn.GELU()) for _ in range(4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def _train_deep(strategy: Strategy, callbacks: list[Callback]) -> tuple[list[float], Any, list[Any]]:
    """Return the losses, the training, and the batches."""
    with strategy.scope():
        torch.manual_seed(3)
        model = _Deep()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = strategy.prepare(model, optimizer, _loss, callbacks=callbacks)
    data = torch.linspace(-1, 1, 24 * 64 * _WIDTH).sin().reshape(24, 64, _WIDTH)
    batches = [*training.batches(data, 6, epochs=1), *training.batches(data, 24, epochs=1)]  # the last one is larger
    return [float(training.step(batch)) for batch in batches], training, batches


@TORCH.add
def a_budget_is_kept_with_one_plan(strategy: Strategy, folder: Path) -> None:
    losses, _, _ = _train_deep(strategy, [])
    checkpointing = GradientCheckpointing(budget=0.6)
    again, training, batches = _train_deep(strategy, [checkpointing])
    assert np.allclose(again, losses, rtol=0 if strategy.worker.world_size < 3 else 1e-6, atol=0)
    plan = checkpointing.plan
    assert plan is not None and plan.budget is not None
    assert 0 < len(plan.layers) < 4, str(plan)
    assert strategy.gather(plan) == [plan] * strategy.worker.world_size
    counted = living_bytes(training.model, lambda: float(training.step(batches[-1])))
    assert 0.5 * plan.predicted_bytes < counted <= plan.budget + _SLACK, f"{counted} bytes were counted\n{plan}"
