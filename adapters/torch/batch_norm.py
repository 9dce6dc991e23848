"""Warn users of BatchNorm that it changes the curve on several workers."""

from __future__ import annotations

import warnings

import torch

from .compat import batch_norm


def warn_of_batch_norm(model: torch.nn.Module, stacklevel: int) -> None:
    """Warn once if a layer normalizes over one worker's samples."""
    kind = batch_norm()
    layers = [name for name, layer in model.named_modules() if isinstance(layer, kind)]
    local = [name for name in layers if not isinstance(model.get_submodule(name), torch.nn.SyncBatchNorm)]
    if local:
        warnings.warn(
            f"BatchNorm ({local[0]!r}{' and others' if len(local) > 1 else ''}) normalizes over one worker's "
            "micro-batch, so the curve depends on the number of workers; GroupNorm or LayerNorm would not",
            stacklevel=stacklevel + 1,
        )
