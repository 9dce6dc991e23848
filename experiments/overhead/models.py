"""The models of `overhead`: stacks of equal layers, from one that is all overhead to one that is all arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEARNING_RATE, MOMENTUM = 1e-3, 0.9
Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Shape:
    """`layers` linear layers of `width`, trained on `batch` samples a worker."""

    layers: int
    width: int
    batch: int


SHAPES = {
    "small": Shape(layers=5, width=64, batch=64),  # 0.02 million parameters
    "medium": Shape(layers=8, width=512, batch=64),  # 2.1 million
    "large": Shape(layers=10, width=1024, batch=256),  # 10.5 million
}


def build_model(shape: Shape) -> nn.Module:
    """Return the model, with the same weights at each call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(shape.layers):
        layers += [nn.Linear(shape.width, shape.width), nn.GELU()]
    return nn.Sequential(*layers[:-1])


def build_data(shape: Shape, steps: int, workers: int) -> Data:
    """Return inputs and targets for `steps` steps of all workers."""
    random = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(2, steps * workers * shape.batch, shape.width, generator=random)
    return inputs, targets
