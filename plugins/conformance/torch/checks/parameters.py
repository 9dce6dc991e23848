"""Contract 2: parameters and buffers that an engine trains as plain code does, or refuses by name."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from .....adapters import OptionError, Strategy
from ...checks.common import weights_of
from ...variants import LOSS_BOUND, WEIGHT_BOUND
from .table import TORCH


@TORCH.add
def buffers_of_any_type_start_from_rank_0(strategy: Strategy, folder: Path) -> None:
    """Engines' own collectives do not support all types: GPT-2 of Hugging Face has a bool buffer."""
    types = (torch.bool, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.complex64)
    rank = strategy.worker.rank
    with strategy.scope():
        model = nn.Linear(6, 1)
        for number, dtype in enumerate(types):
            model.register_buffer(
                f"own{number}", torch.full((2, 3), rank == 0, dtype=dtype).T, persistent=number % 2 == 0
            )
        model.register_buffer("scalar", torch.tensor(rank == 0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    assert all(bool((buffer == 1).all()) for buffer in training.model.buffers())
    assert math.isfinite(float(training.step(next(training.batches(torch.ones(8, 6), 8)))))


@TORCH.add
def complex_parameters_are_trained_or_refused(strategy: Strategy, folder: Path) -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.weight = nn.Parameter(torch.randn(6, 1, dtype=torch.complex64))

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return (features.to(torch.complex64) @ self.weight).abs()

    data = torch.linspace(-1, 1, 48).sin().reshape(8, 6)
    reference = Complex()
    plain = torch.optim.SGD(reference.parameters(), lr=0.1)
    expected = []
    for _ in range(3):
        plain.zero_grad()
        loss = reference(data).square().mean()
        loss.backward()
        plain.step()
        expected.append(loss.item())
    model = Complex()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if "complex64" not in strategy.capabilities.dtypes:
        with pytest.raises(OptionError, match=r"parameter 'weight' is complex64, which strategy '.*' does not train"):
            strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
        return
    training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    losses = [float(training.step(batch)) for batch in training.batches(data, 8, epochs=3)]
    assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"])


@TORCH.add
def groups_by_shape_are_those_of_whole_parameters_or_refused(strategy: Strategy, folder: Path) -> None:
    """Weight decay for matrices only, as in many programs; inside scope() a matrix may be sharded."""
    with strategy.scope():
        model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
        matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
        others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": matrices, "weight_decay": 1.0}, {"params": others}]
        optimizer = torch.optim.AdamW(groups, lr=0.05, weight_decay=0.0)
        if len(matrices) == len(others) == 2:
            strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
            return
        with pytest.raises(OptionError, match=r"a group of the optimizer is empty.*ds_shape"):
            strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    assert "parameters" in strategy.capabilities.shards


class _Odd(nn.Module):
    """A layer, and a parameter of a rare kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(6, 1)
        if kind == "sparse":
            self.odd: Any = nn.Embedding(10, 6, sparse=True)
        else:
            self.odd = nn.Parameter(torch.tensor(1.5) if kind == "scalar" else torch.zeros(0))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if isinstance(self.odd, nn.Embedding):
            features = features + self.odd((9 * features[:, 0].abs()).long())
        output: torch.Tensor = self.layer(features)
        return output if isinstance(self.odd, nn.Embedding) else output * (1 + self.odd.sum())


_DATA = torch.linspace(-1, 1, 144).sin().reshape(24, 6)


def _train_plainly(model: nn.Module) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for first in (0, 8, 16):
        optimizer.zero_grad()
        loss = model(_DATA[first : first + 8]).square().mean()
        loss.backward()
        _clip(model, 0.3)
        optimizer.step()
        losses.append(loss.item())
    return losses


def _clip(model: nn.Module, largest: float) -> None:
    gradients = [p.grad.to_dense() for p in model.parameters() if p.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad = parameter.grad * min(1.0, largest / (float(norm) + 1e-6))


@TORCH.add
def odd_parameters_are_trained_or_refused(strategy: Strategy, folder: Path) -> None:
    """A scalar, one without elements, and one whose gradient is sparse, which is clipped too."""
    refusals: dict[str, str] = {}
    for kind in ("scalar", "empty", "sparse"):
        reference = _Odd(kind)
        expected = _train_plainly(reference)
        try:
            with strategy.scope():
                model = _Odd(kind)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), clip_norm=0.3)
            losses = [float(training.step(batch)) for batch in training.batches(_DATA, 8, shuffle=False)]
        except OptionError as error:
            refusals[kind] = str(error)
            continue
        assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"]), kind
        found = weights_of(training)
        for name, weight in reference.state_dict().items():
            distance = np.linalg.norm(found[name] - weight.numpy())
            assert distance <= WEIGHT_BOUND["float32"] * weight.norm(), f"{kind}: {name}"
    assert all("parameter 'odd" in said for said in refusals.values()), refusals
    assert set(refusals) == ({"scalar", "empty", "sparse"} if strategy.capabilities.shards else set()), refusals
