"""Gradient checkpointing for PyTorch, on `torch.utils.checkpoint` without reentrant autograd."""

from .apply import apply
from .planning import plan

__all__ = ["apply", "plan"]
