"""Count what a step's forward passes leave for its backward passes, in PyTorch, without the help of what is tested."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .compat import DispatchMode


def living_bytes(model: nn.Module, act: Callable[[], object]) -> int:
    """Run a training step, and return the most bytes of activations that lived when a backward pass began.

    These are the tensors that operators made while gradients were recorded: in the forward pass, and where a layer is
    computed again. They are counted where backward begins or goes on, when temporary ones are gone. Parameters that an
    engine gathers are left out, and so is what was there before the step, such as the batch.
    """
    counter = _Counter(model)
    with counter:
        act()
    return counter.most


class _Counter(DispatchMode):  # type: ignore[misc]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.most = 0
        self._model = model
        self._living: dict[int, int] = {}  # bytes by the storage's identity
        self._in_forward = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        recording = torch.is_grad_enabled()
        if self._in_forward and not recording:
            self._count()
        self._in_forward = recording
        result = func(*args, **(kwargs or {}))
        if recording:
            given = {id(storage) for storage in _storages((args, kwargs))}
            for storage in _storages(result):
                if id(storage) not in given and id(storage) not in self._living:
                    self._living[id(storage)] = storage.nbytes()
                    weakref.finalize(storage, self._living.pop, id(storage), None)
        return result

    def _count(self) -> None:
        gathered = {id(storage) for storage in _storages(list(self._model.parameters()))}
        self.most = max(self.most, sum(size for name, size in self._living.items() if name not in gathered))


def _storages(values: Any) -> Iterator[Any]:
    """Yield the storages of the plain tensors in nested values."""
    if type(values) in (torch.Tensor, nn.Parameter):
        yield values.untyped_storage()
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _storages(value)
    elif isinstance(values, dict):
        yield from _storages(list(values.values()))
