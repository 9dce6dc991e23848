"""Write a model's state as one safetensors file (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from ...adapters.torch.checkpoint import CheckpointReader
from ...adapters.torch.checkpoint.dtypes import dtype_of
from .model_state import ModelState
from .places import new_place


def export_safetensors(path: str, out: str, dtype: str | None) -> tuple[int, list[str]]:
    """Write the file, and return how many tensors are in it, and the names of what is no tensor and not in it.

    Tensors are read and converted one at a time, but the library writes a file only from all of them: memory must hold
    the file's size, and one tensor as it was.

    Raises:
        CheckpointError: the checkpoint is missing, torn or damaged; or something is at `out`.
    """
    state = ModelState(CheckpointReader(path))
    with new_place(out) as place:
        tensors: dict[str, torch.Tensor] = {}
        for name in state.names:
            value = state.read(name)
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype_of(dtype))
            tensors[name] = value
        save_file(tensors, place, metadata={"format": "pt"})
    return len(tensors), sorted(state.others)
