"""Contract 1 and 2: parameters that a graph does not have, or not before backward."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .....adapters import Strategy
from ...checks.common import same_everywhere, weights_of
from ...variants import LOSS_BOUND
from .table import TORCH

_DATA = torch.linspace(-1, 1, 144).sin().reshape(24, 6)


@TORCH.add
def a_reentrant_checkpoint_trains(strategy: Strategy, folder: Path) -> None:
    """The graph has its parameters in backward only; and an engine that looks for unused ones does not warn of it."""

    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.middle, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = checkpoint(self.middle, nn.functional.gelu(self.first(features)), use_reentrant=True)
            output: torch.Tensor = self.last(hidden)
            return output

    reference = Recomputed()
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    expected = []
    for first in (0, 8, 16):
        plain.zero_grad()
        loss = reference(_DATA[first : first + 8]).square().mean()
        loss.backward()
        plain.step()
        expected.append(loss.item())
    with strategy.scope():
        model = Recomputed()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), accumulate=2)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            losses = [float(training.step(batch)) for batch in training.batches(_DATA, 8, shuffle=False)]
    finally:
        torch.set_warn_always(always)
    assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"], abs=LOSS_BOUND["float32"])
    assert not [warning for warning in caught if "unused parameters" in str(warning.message)]


class _NoGradient(torch.autograd.Function):
    """Passes values on, and no gradient back."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return None


class _Varying(nn.Module):
    """Uses other parameters in each micro-batch and on each worker: skips layers, or multiplies their output by 0."""

    def __init__(self, skips: bool, rank: int, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last = nn.Linear(6, 4), nn.Linear(4, 1)
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("early", "late", "later_here", "frozen")})
        self.rows, self.never = nn.Embedding(3, 4, sparse=sparse), nn.Linear(4, 4)
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
        never = _NoGradient.apply(self.never(hidden))  # type: ignore[no-untyped-call]
        output: torch.Tensor = self.last(hidden + never)
        return output


@TORCH.add
def micro_batches_may_use_different_parameters(strategy: Strategy, folder: Path) -> None:
    """A gradient of zeros and none at all are the same without weight decay; a user's hook is never given `None`."""
    whole = "parameters" not in strategy.capabilities.shards
    losses, weights = [], []
    for skips in (False, True):
        with strategy.scope():
            model = _Varying(skips, strategy.worker.rank, sparse=not strategy.capabilities.shards)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if whole:
            for parameter in (*model.layers.parameters(), model.rows.weight):
                parameter.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), accumulate=2)
        if whole:
            model.layers["frozen"].requires_grad_(False)
        losses.append([float(training.step(batch)) for batch in training.batches(_DATA, 8, epochs=2, shuffle=False)])
        weights.append(weights_of(training))
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_BOUND["float32"])
    assert same_everywhere(strategy, weights[1].values())
    for name, weight in weights[0].items():
        assert weights[1][name] == pytest.approx(weight, abs=LOSS_BOUND["float32"]), name
