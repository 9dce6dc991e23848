"""Nested structures: dicts, lists, tuples and named tuples around leaves of any type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def map_structure(function: Callable[[Any], Any], structure: Any) -> Any:
    """Return `structure` with each leaf replaced by `function(leaf)`, visited in the same order on every worker."""
    if isinstance(structure, Mapping):
        mapped = {key: map_structure(function, value) for key, value in structure.items()}
        return mapped if type(structure) is dict else _rebuilt(structure, mapped)
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_structure(function, value) for value in structure))
    if isinstance(structure, (list, tuple)):
        return type(structure)(map_structure(function, value) for value in structure)
    return function(structure)


def _rebuilt(original: Mapping[Any, Any], mapped: dict[Any, Any]) -> Any:
    try:
        return type(original)(mapped)  # type: ignore[call-arg]
    except TypeError:
        return mapped
