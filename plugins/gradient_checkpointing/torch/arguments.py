"""A layer's arguments, with the tensors taken out, so that autograd keeps them and knows if one was changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class _Place:
    """Where a tensor was: its number among those taken out."""

    number: int


def take_tensors(arguments: Any) -> tuple[list[torch.Tensor], Any]:
    """Return the tensors in lists, tuples and dicts, nested or not, and a copy of these with places for them.

    Objects of other classes are not looked into.
    """
    tensors: list[torch.Tensor] = []

    def take(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        tensors.append(value)
        return _Place(len(tensors) - 1)

    return tensors, _mapped(take, arguments)


def put_tensors(tensors: Sequence[torch.Tensor], places: Any) -> Any:
    """Return a copy of what `take_tensors` returned, with tensors in the places."""
    return _mapped(lambda value: tensors[value.number] if isinstance(value, _Place) else value, places)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    if type(value) is dict:
        return {key: _mapped(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(function, item) for item in value))
    if type(value) in (list, tuple):
        return type(value)(_mapped(function, item) for item in value)
    return function(value)
