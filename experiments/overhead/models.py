"""The models of `overhead` and their data, in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .shapes import Shape

Data = tuple[Tensor, Tensor]


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


def loss_fn(model: nn.Module, batch: Data) -> Tensor:
    """Return the mean squared error of a micro-batch."""
    inputs, targets = batch
    return mse_loss(model(inputs), targets)
