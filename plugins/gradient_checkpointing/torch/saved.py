"""The memory of tensors that autograd saves for the backward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from .compat import current_hooks

Storages = dict[int, int]
"""Memory blocks: their bytes by their address."""


@contextlib.contextmanager
def seeing_saved(see: Callable[[torch.Tensor], None] | None) -> Iterator[None]:
    """Call `see`, if given, with each tensor that a recomputation saves.

    Only the innermost hooks are called, so these call those of `torch.utils.checkpoint`.
    """
    if see is None:
        yield
        return
    pack, unpack = current_hooks()

    def packing(tensor: torch.Tensor) -> Any:
        see(tensor)
        return pack(tensor)

    with torch.autograd.graph.saved_tensors_hooks(packing, unpack):
        yield


def storages(tensors: Iterable[torch.Tensor]) -> Storages:
    """Return the memory of dense tensors."""
    found: Storages = {}
    for tensor in tensors:
        if tensor.layout is torch.strided and not hasattr(tensor, "full_tensor"):  # as a DTensor has it
            storage = tensor.untyped_storage()
            if storage.nbytes() > 0:
                found[storage.data_ptr()] = storage.nbytes()
    return found


def activations(tensors: Iterable[torch.Tensor], module: torch.nn.Module) -> Storages:
    """Return the memory of tensors that are no parameters, nor parameters or buffers of a module, nor views of those.

    Engines move these while they train, so their present memory is looked at each time.
    """
    found = storages(tensor for tensor in tensors if not isinstance(tensor, torch.nn.Parameter))
    for address in storages([*module.parameters(), *module.buffers()]) if found else ():
        found.pop(address, None)
    return found
