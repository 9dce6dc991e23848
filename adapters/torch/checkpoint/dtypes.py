"""PyTorch's element types by their names."""

from __future__ import annotations

import torch

from ...errors import CheckpointError


def dtype_name(dtype: torch.dtype) -> str:
    """Return a type's name: "float32"."""
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    """Return the type with this name.

    Raises:
        CheckpointError: this PyTorch has no such type.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"this PyTorch has no element type {name!r}")
    return dtype
