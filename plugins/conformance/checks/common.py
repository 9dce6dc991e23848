"""The table of checks, and what several of them use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ....adapters import Strategy, Training
from .. import program
from ..variants import VARIANTS

Check = Callable[[Strategy, Path], Any]

CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Register a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


def same_everywhere(strategy: Strategy, value: Any) -> bool:
    """Whether all workers hold the same bytes."""
    arrays = [np.asarray(tensor.detach().cpu()).tobytes() for tensor in value]
    return all(other == arrays for other in strategy.gather(arrays))


def weights_of(training: Training) -> dict[str, torch.Tensor]:
    """Return copies of the whole weights, by name."""
    return {name: weight.clone() for name, weight in training.weights()}


def value_of(tensor: torch.Tensor | None) -> float:
    """Return the number in a tensor that must be there."""
    assert tensor is not None
    return tensor.item()


def batches_of(training: Training, steps: int = 1_000_000) -> Any:
    """Return an iterator over batches for a training of variant "sgd_momentum"."""
    data = program.dataset(VARIANTS["sgd_momentum"], torch.float32)
    return (batch for batch, _ in zip(training.batches(data, 16, epochs=9), range(steps), strict=False))
