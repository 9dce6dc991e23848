"""A model's state dict as a checkpoint holds it: tied parameters under all their names, tensors read on request."""

from __future__ import annotations

from typing import Any

import torch

from ...adapters.checkpoint.manifest import TensorInfo
from ...adapters.torch.checkpoint import CheckpointReader


class ModelState:
    """What `model.state_dict()` would hold after a load.

    names: all its tensors.
    others: entries that are no tensors, by name: extra state.

    Raises:
        CheckpointError: the checkpoint's files differ from their sizes or checksums.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        reader.verify()
        self._reader = reader
        self._aliases = reader.manifest.aliases
        stored = [name.removeprefix("model/") for name in reader.tensors if name.startswith("model/")]
        self.names = sorted([*stored, *self._aliases])
        self.others: dict[str, Any] = reader.objects["model"]

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's shape and type."""
        return self._reader.tensors[self._stored(name)]

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of a tensor."""
        return self._reader.read(self._stored(name))

    def _stored(self, name: str) -> str:
        return f"model/{self._aliases.get(name, name)}"
