"""`ddp`: each worker uses other parameters in each micro-batch, in ways that not every engine trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farandole.adapters import Strategy
from farandole.plugins.conformance.checks.common import same_everywhere, weights_of
from farandole.plugins.conformance.variants import LOSS_BOUND

DATA = torch.linspace(-1, 1, 144).sin().reshape(24, 6)


class NoGradient(torch.autograd.Function):
    """Passes values on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None


class Varying(nn.Module):
    """Uses other parameters in each micro-batch and on each worker: skips layers, or multiplies their output by 0."""

    def __init__(self, skips: bool, rank: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 1)
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("early", "late", "later_here", "frozen")})
        self.rows, self.never = nn.Embedding(3, 4, sparse=True), nn.Linear(4, 4)
        self.passes = 0
        self._skips, self._rank = skips, rank

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        number, self.passes = self.passes % 2, self.passes + 1
        used = {"early": number == 0, "late": number == 1, "later_here": number == 1 and self._rank == 0}
        hidden = nn.functional.gelu(self.first(features))
        for name, layer in self.layers.items():
            if used.get(name) or not self._skips:
                hidden = hidden + float(used.get(name, False)) * layer(hidden)
        if used["later_here"] or not self._skips:
            hidden = hidden + float(used["later_here"]) * self.rows((3 * features[:, 0].abs()).long())
        output: torch.Tensor = self.last(hidden + NoGradient.apply(self.never(hidden)))
        return output


def main(strategy: Strategy, folder: Path) -> None:
    """A gradient of zeros and none at all are the same without weight decay; a user's hook is never given `None`."""
    losses, weights = [], []
    for skips in (False, True):
        model = Varying(skips, strategy.worker.rank)
        for parameter in (*model.layers.parameters(), model.rows.weight):
            parameter.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), accumulate=2)
        model.layers["frozen"].requires_grad_(False)
        losses.append([float(training.step(batch)) for batch in training.batches(DATA, 8, epochs=2, shuffle=False)])
        weights.append(weights_of(training))
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_BOUND["float32"])
    assert same_everywhere(strategy, weights[1].values())
    for name, weight in weights[0].items():
        assert weights[1][name] == pytest.approx(weight, abs=LOSS_BOUND["float32"]), name
