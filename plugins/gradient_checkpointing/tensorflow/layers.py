"""The layers of a Keras model, by their paths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from ....adapters.tensorflow.compat import ModelView
from ..selection import Candidate, kind_of


def layers_by_path(model: Any) -> dict[str, Any]:
    """Return all layers inside of a model by their paths, each once, containers before what they contain.

    A layer that is a public attribute, or in a list or dict that is one, is called as there ("blocks.3"), the same in
    every process; others, as those of a functional or sequential model, by their Keras names.
    """
    found: dict[str, Any] = {}
    seen = {id(model)}

    def visit(outer: Any, path: str) -> None:
        names = {id(layer): name for name, layer in reversed([*_attributes(outer)])}
        for layer in ModelView(outer).flat_layers(include_self=False, recursive=False):
            if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
                continue
            seen.add(id(layer))
            name = path + names.get(id(layer), str(layer.name).replace(".", "_"))
            while name in found:
                name += "_"
            found[name] = layer
            visit(layer, f"{name}.")

    visit(model, "")
    return found


def candidates(layers: Mapping[str, Any]) -> list[Candidate]:
    """Describe layers for `select`."""
    return [
        Candidate(name, kind_of(type(layer)), _signature(layer), name.rpartition(".")[0])
        for name, layer in layers.items()
    ]


def _signature(layer: Any) -> tuple[Any, ...]:
    weights = tuple((weight.name, tuple(weight.shape), weight.dtype) for weight in layer.weights)
    return (kind_of(type(layer)), *weights) if weights else ()


def _attributes(layer: Any) -> Iterator[tuple[str, Any]]:
    for name, value in vars(layer).items():
        if not name.startswith("_"):
            yield from _inside(name, value)


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the layers of an attribute with their paths."""
    if isinstance(value, keras.layers.Layer):
        yield name, value
    elif isinstance(value, (list, tuple)):
        for number, entry in enumerate(value):
            yield from _inside(f"{name}.{number}", entry)
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _inside(f"{name}.{key}", entry)
