"""Contract 1: parameters that a graph does not have before backward."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .....adapters import Strategy
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
