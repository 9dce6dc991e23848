"""Write a model's state as one safetensors file (https://huggingface.co/docs/safetensors)."""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from ...adapters.torch.checkpoint import CheckpointReader
from ...adapters.torch.checkpoint.dtypes import dtype_of
from .model_state import ModelState
from .places import new_place


def export_safetensors(path: str, out: str, dtype: str | None) -> tuple[int, list[str]]:
    """Write the file; return its number of tensors, and the names of entries left out because they are no tensors.

    Tensors are read and converted one at a time, but the library needs all of them to write the file: memory must hold
    the file's size, and one unconverted tensor.

    Raises:
        CheckpointError: the checkpoint is missing, torn or damaged; or `out` exists.
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
