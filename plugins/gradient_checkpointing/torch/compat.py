"""Undocumented names of PyTorch that checkpointing uses. Files are those of PyTorch 2.13, below `torch/`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....adapters.torch.compat import TORCH, count_changes

Hooks = tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]


def check() -> None:
    """Check what is needed, when a model is prepared.

    Raises:
        EngineUnavailableError: the installed PyTorch lacks it.
    """
    version_of(torch.empty(0))
    _top_hooks()


def version_of(tensor: torch.Tensor) -> int:
    """Return how often a tensor's memory was changed in place, as far as that is counted."""
    return 0 if tensor.is_inference() else count_changes(tensor)


def current_hooks() -> Hooks:
    """Return the pack and unpack hooks for saved tensors that are in force (_C/_autograd.pyi)."""
    hooks: Hooks = _top_hooks()(False)
    return hooks


def _top_hooks() -> Any:
    return TORCH.load("torch._C._autograd", "_top_saved_tensors_default_hooks")
