"""Which engines hold a module: they have to let go of it before others take it."""

from __future__ import annotations

from typing import Any

import torch

from ...adapters.torch.engine import Engine

_NAME = "_farandole_engines"


class _Engines(list[Engine]):
    """Kept on the module, so that both are freed together. A copy of the module is in nobody's hands."""

    def __deepcopy__(self, memo: Any) -> _Engines:
        return _Engines()

    def __reduce__(self) -> tuple[Any, ...]:
        return list, ()


def engines_of(module: torch.nn.Module) -> list[Engine]:
    """Return the engines that hold it, one for each optimizer; none where it was not trained in this process."""
    return list(module.__dict__.get(_NAME, ()))


def hand_over(module: torch.nn.Module, engine: Engine) -> None:
    """Take note that an engine holds it, beside those that do."""
    module.__dict__.setdefault(_NAME, _Engines()).append(engine)


def release(module: torch.nn.Module) -> None:
    """Have all of its engines let go of it."""
    for engine in module.__dict__.pop(_NAME, ()):
        engine.release()
