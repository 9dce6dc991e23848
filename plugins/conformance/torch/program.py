"""The program whose curves are compared: a user's program, the same for every engine and for the reference.

The model is smooth (GELU, no bias before a normalization): ReLU and max pooling amplify rounding even in one process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..variants import Variant

TENSOR_FILES = "*.distcp"
"""The files of a checkpoint that hold tensors, one per worker; the last worker's sorts last."""

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SmoothNet(nn.Module):
    """A classifier of 12 features into 4 classes, all of it differentiable."""

    def __init__(self, unused: bool = False) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, 32, bias=False), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 4)
        )
        self.spare = nn.Linear(5, 5) if unused else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(features)
        return logits


def build(variant: Variant, dtype: str) -> tuple[SmoothNet, torch.optim.Optimizer, Any]:
    """Return model, optimizer and scheduler (or `None`) of a variant, with the same weights at each call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = SmoothNet(variant.unused).to(getattr(torch, dtype))
    optimizer: torch.optim.Optimizer
    if variant.optimizer == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60) if variant.schedule else None
    return model, optimizer, scheduler


def dataset(variant: Variant, dtype: str) -> Sample:
    """Return features (length, 12), classes (length,) and tokens (length,) of a variant, the same at each call."""
    stream = torch.Generator().manual_seed(7)
    features = torch.randn(variant.length, 12, generator=stream, dtype=torch.float64)
    teacher = torch.randn(12, 4, generator=stream, dtype=torch.float64)
    classes = (features @ teacher + torch.randn(variant.length, 4, generator=stream, dtype=torch.float64)).argmax(1)
    tokens = torch.randint(1, 9, (variant.length,), generator=stream)
    return features.to(getattr(torch, dtype)), classes, tokens


def mean_loss(model: nn.Module, batch: Sample) -> torch.Tensor:
    """Return the mean cross-entropy of a batch over its samples."""
    features, classes, _ = batch
    return nn.functional.cross_entropy(model(features), classes)


def mean_token_loss(model: nn.Module, batch: Sample) -> torch.Tensor:
    """Return the mean over tokens, each with its sample's cross-entropy."""
    features, classes, tokens = batch
    losses = nn.functional.cross_entropy(model(features), classes, reduction="none")
    return (losses * tokens).sum() / tokens.sum()


def count_tokens(batch: Sample) -> torch.Tensor:
    """Return the number of tokens of a batch."""
    return batch[2].sum()


def dropout_net() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[nn.Module, torch.Tensor], torch.Tensor]]:
    """Return model, optimizer and loss of a net of 4 features with dropout."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.01), lambda m, x: m(x).square().mean()


def tensor(values: Any, dtype: str) -> torch.Tensor:
    """Return a tensor of the framework."""
    return torch.tensor(values, dtype=getattr(torch, dtype))
