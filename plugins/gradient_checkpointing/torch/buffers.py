"""The buffers that a layer writes in its forward pass, which computing it again must not write a second time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

_SMALL = 4096
"""Elements up to which a buffer is copied in each forward pass, in case that only some passes write it."""

Modes = tuple[bool, ...]
"""Which modules of a layer are in training mode; what is written depends on it."""


@dataclass(frozen=True)
class Snapshot:
    """A layer before its forward pass.

    modules, modes: the modules in it, and which are in training mode.
    values: buffers that the forward pass may write: their module, their name in it, and a copy.
    """

    modules: list[torch.nn.Module]
    modes: Modes
    values: list[tuple[torch.nn.Module, str, torch.Tensor]]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Put the layer back to this moment, with copies in the place of buffers, and to the present at the end."""
        buffers = [(module, name, getattr(module, name)) for module, name, _ in self.values]
        for module, name, value in self.values:
            setattr(module, name, value.clone())
        try:
            with in_modes(self.modules, self.modes):
                yield
        finally:
            for module, name, buffer in buffers:
                setattr(module, name, buffer)


class Buffers:
    """The buffers of a layer, for example BatchNorm's statistics.

    A layer may read what it writes, as spectral normalization does. So it is computed again with copies of the values
    from before its forward pass, while the model keeps the present ones.

    The first forward pass copies all buffers, and learns which ones are written. Later ones copy those, and small ones.

    modules: the layer, and those inside.
    any: whether they have buffers.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        self.modules = list(layer.modules())
        self.any = next(layer.buffers(), None) is not None
        self._written: dict[Modes, set[tuple[torch.nn.Module, str]]] = {}

    def take(self) -> Snapshot:
        """Return the state before a forward pass, which begins now."""
        modes = modes_of(self.modules)
        written = self._written.get(modes)
        values = [
            (module, name, buffer.detach().clone())
            for module in self.modules
            for name, buffer in module.named_buffers(recurse=False)
            if written is None or buffer.numel() <= _SMALL or (module, name) in written
        ]
        return Snapshot(self.modules, modes, values)

    def writes(self) -> bool:
        """Whether any forward pass has written a buffer, as far as was learnt."""
        return any(self._written.values())

    def learn(self, before: Snapshot) -> None:
        """Learn what a forward pass has written since a snapshot of all buffers."""
        changed = {(module, name) for module, name, value in before.values if not _same(getattr(module, name), value)}
        self._written.setdefault(before.modes, set()).update(changed)


def modes_of(modules: list[torch.nn.Module]) -> Modes:
    """Return which modules are in training mode."""
    return tuple(module.training for module in modules)


@contextlib.contextmanager
def in_modes(modules: list[torch.nn.Module], modes: Modes) -> Iterator[None]:
    """Put modules into these modes, and back at the end."""
    present = modes_of(modules)
    if present == modes:
        yield
        return
    _set_modes(modules, modes)
    try:
        yield
    finally:
        _set_modes(modules, present)


def _set_modes(modules: list[torch.nn.Module], modes: Modes) -> None:
    for module, mode in zip(modules, modes, strict=True):
        module.training = mode


def _same(one: torch.Tensor | None, other: torch.Tensor) -> bool:
    return one is not None and one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
