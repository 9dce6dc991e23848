"""Objects on their way between workers: tensors in them that are on a GPU arrive on the receiver's device.

A pickle of a tensor names the sender's GPU, which the receiver may not have, or should not use.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import torch

from .compat import storage_loader


def pack(value: Any) -> bytes:
    """Return a pickle of `value`."""
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def unpack(data: bytes, device: torch.device) -> Any:
    """Return the value of a pickle. Its tensors are on `device`; those that were on the CPU stay there."""
    return _Unpickler(data, device).load()


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, device: torch.device) -> None:
        super().__init__(io.BytesIO(data))
        self._device = device

    def find_class(self, module: str, name: str, /) -> Any:
        found = super().find_class(module, name)
        return self._load_storage if found is storage_loader() else found

    def _load_storage(self, data: bytes) -> Any:
        return torch.load(io.BytesIO(data), map_location=self._place, weights_only=False)

    def _place(self, storage: Any, location: str) -> Any:
        # `location` is the sender's; here the storage is still on the CPU.
        return storage if location == "cpu" else storage.to(device=self._device)
