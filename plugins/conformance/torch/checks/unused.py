"""Contract 1 and 2: parameters that some micro-batches leave unused, or that a graph does not have before backward."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .....adapters import Strategy
from ...checks.common import same_everywhere, weights_of
from ...variants import LOSS_BOUND, WEIGHT_BOUND
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


def _without_gradient(values: torch.Tensor) -> torch.Tensor:
    passed: torch.Tensor = _NoGradient.apply(values)  # type: ignore[no-untyped-call]
    return passed


class _Varying(nn.Module):
    """Each sample of a batch of 8 uses other layers. Some parameters have no gradient although they are used.

    skips: whether a micro-batch skips layers that its samples do not use; else their output is multiplied by 0.
    sparse: whether the gradient of the embedding is sparse.
    """

    uses: ClassVar = {"few": (0, 1), "many": (0, 1, 2, 3), "one": (7,), "rows": (0, 5), "cut": (2, 3, 6)}

    def __init__(self, skips: bool, sparse: bool) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.last, self.frozen_later = nn.Linear(6, 4), nn.Linear(4, 1), nn.Linear(4, 4)
        self.cut, self.never = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))
        self.layers = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("few", "many", "one")})
        self.layers["rows"] = nn.Embedding(3, 4, sparse=sparse)
        self._skips = skips

    def forward(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        features, number = batch
        hidden = nn.functional.gelu(self.first(features))
        for name, samples in self.uses.items():
            used = torch.isin(number, torch.tensor(samples, device=number.device))
            if name == "cut":
                output = hidden * self.cut if used.any() else _without_gradient(hidden * self.cut)
            elif used.any() or not self._skips:
                output = self.layers[name]((3 * features[:, 0].abs()).long() if name == "rows" else hidden)
            else:
                continue
            hidden = hidden + used.unsqueeze(1) * output
        hidden = hidden + _without_gradient(hidden * self.never) + self.frozen_later(hidden)
        result: torch.Tensor = self.last(hidden)
        return result


@TORCH.add
def micro_batches_may_use_different_parameters(strategy: Strategy, folder: Path) -> None:
    """Or have no gradient for them, where a function of the graph has none; where no worker has, weights do not decay.

    Where parameters are sharded, all workers must run the same modules.
    """
    gathers = "parameters" in strategy.capabilities.shards

    def build() -> tuple[_Varying, torch.optim.Optimizer]:
        model = _Varying(skips=not gathers, sparse=not strategy.capabilities.shards)
        for name in ("few", "one"):
            for parameter in model.layers[name].parameters():
                parameter.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]  # fails if it gets None
        rows = list(model.layers["rows"].parameters())
        rest = [parameter for parameter in model.parameters() if parameter is not rows[0]]
        groups: list[dict[str, Any]] = [{"params": rest, "weight_decay": 0.1}, {"params": rows}]
        return model, torch.optim.SGD(groups, lr=0.1)

    def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
        loss: torch.Tensor = model(batch).square().mean()
        return loss

    data = (_DATA, torch.cat([torch.arange(8), torch.arange(8), torch.full((8,), 4)]))
    reference, plain = build()
    reference.frozen_later.requires_grad_(False)
    expected = []
    for first in (0, 8, 16, 0, 8, 16):
        plain.zero_grad()
        loss = loss_of(reference, [part[first : first + 8] for part in data])
        loss.backward()  # type: ignore[no-untyped-call]
        plain.step()
        expected.append(loss.item())
    model, optimizer = build()
    training = strategy.prepare(model, optimizer, loss_of, accumulate=2)
    model.frozen_later.requires_grad_(False)
    losses = [float(training.step(batch)) for batch in training.batches(data, 8, epochs=2, shuffle=False)]
    assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"], abs=LOSS_BOUND["float32"])
    found = weights_of(training)
    assert same_everywhere(strategy, found.values())
    for name, weight in reference.state_dict().items():
        assert np.linalg.norm(found[name] - weight.numpy()) <= WEIGHT_BOUND["float32"] * weight.norm(), name
