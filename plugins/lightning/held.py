"""The engines that hold a module: they must release it, and its submodules, before others take them."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from ...adapters.torch.engine import Engine

_NAME = "_farandole_engines"

_released: weakref.WeakSet[Engine] = weakref.WeakSet()


class _Engines(list[tuple[Engine, bool]]):
    """Kept on the module, so that both are freed together. A copy of the module has no engines."""

    def __deepcopy__(self, memo: Any) -> _Engines:
        return _Engines()

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ()


def engines_of(module: torch.nn.Module) -> list[Engine]:
    """Return the engines of the whole module, one for each optimizer; none if it is not being trained."""
    return [engine for engine, whole in module.__dict__.get(_NAME, ()) if whole and engine not in _released]


def hand_over(module: torch.nn.Module, engine: Engine) -> None:
    """Record one more engine that holds the module."""
    for part in module.modules():
        part.__dict__.setdefault(_NAME, _Engines()).append((engine, part is module))


def release(module: torch.nn.Module) -> None:
    """Release everything that is held by engines of the module or of a submodule."""
    held = [engine for part in module.modules() for engine, _ in part.__dict__.pop(_NAME, ())]
    for engine in dict.fromkeys(held):
        if engine not in _released:
            engine.release()
            _released.add(engine)
