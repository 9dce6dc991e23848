"""Weigh a micro-batch's loss, so that the mean of the workers' gradients is the mean over the global batch."""

from __future__ import annotations

import torch

from ..weighting import mean_factor


def weigh(loss: torch.Tensor, weight: float, total: float, world_size: int) -> torch.Tensor:
    """Return the mean loss of `weight` of the global batch's `total` samples, times `mean_factor`."""
    factor = mean_factor(weight, total, world_size)
    return loss if factor == 1 else loss * factor


def is_placeholder_not_finite(loss: torch.Tensor, weight: float) -> bool:
    """Whether a placeholder's loss is not finite; `check_placeholder_gradients` then checks its gradient."""
    return weight == 0 and not bool(torch.isfinite(loss).all())
