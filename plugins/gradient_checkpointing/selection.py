"""Which layers are checkpointed: repeated blocks, or those that the user names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ...adapters.errors import OptionError, did_you_mean

_SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Candidate:
    """A layer that could be checkpointed.

    name: its path in the model, for example "blocks.3".
    kind: its class, as `kind_of` writes it.
    signature: what two repetitions of a block have in common: the class, and its parameters' names, shapes and types.
        Empty for a layer without parameters.
    parent: the path of the layer that contains it; empty for the model itself.
    """

    name: str
    kind: str
    signature: tuple[Any, ...]
    parent: str


Layer = str | type | Callable[[Candidate], bool]
Layers = Layer | Sequence[Layer]


def kind_of(layer_class: type) -> str:
    """Return the qualified name of a class."""
    return f"{layer_class.__module__}.{layer_class.__qualname__}"


def select(layers: Layers, candidates: Sequence[Candidate]) -> list[str]:
    """Return the names of the selected layers, in the order of `candidates`. Of nested ones the outermost is selected.

    Args:
        layers: "blocks" (see `repeated_blocks`); a layer's name, or a pattern such as "blocks.*", in which "*" also
            matches dots; a class, of which a layer must be a direct instance; a function from a candidate to whether it
            is selected; or a list of these, each of which must match.

    Raises:
        OptionError: one of them matches no layer, or the model has no repeated blocks.
    """
    if layers == "blocks":
        return repeated_blocks(candidates)
    asked = list(layers) if isinstance(layers, (list, tuple, set, frozenset)) else [layers]
    if not asked:
        raise OptionError("layers is empty: leave it out to checkpoint all repeated blocks")
    chosen = {candidate.name for one in asked for candidate in _matches(one, candidates)}
    return _outermost(candidate.name for candidate in candidates if candidate.name in chosen)


def repeated_blocks(candidates: Sequence[Candidate]) -> list[str]:
    """Return the outermost layers that are repeated: two in one container have the same signature.

    If a repeated block contains layers, all other layers of its class are blocks too, for example the first one of each
    stage in a ResNet, which has another shape; layers around a block are not.

    Raises:
        OptionError: there are none.
    """
    groups: dict[tuple[str, tuple[Any, ...]], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        if candidate.signature:
            groups[candidate.parent, candidate.signature].append(candidate)
    repeated = [candidate for group in groups.values() if len(group) > 1 for candidate in group]
    if not repeated:
        raise OptionError(
            "the model has no repeated blocks (two layers of the same class and shapes in one container): name the "
            f"layers to checkpoint, for example layers={[candidate.name for candidate in candidates][:2]}"
        )
    found = set(_outermost(candidate.name for candidate in repeated))
    around = {outer for name in found for outer in _containers(name)}
    composite = {outer for candidate in candidates for outer in _containers(candidate.name)}
    kinds = {candidate.kind for candidate in repeated if candidate.name in found & composite}
    found |= {candidate.name for candidate in candidates if candidate.kind in kinds and candidate.name not in around}
    return _outermost(candidate.name for candidate in candidates if candidate.name in found)


def _matches(asked: Any, candidates: Sequence[Candidate]) -> list[Candidate]:
    if isinstance(asked, str):
        found = [candidate for candidate in candidates if fnmatchcase(candidate.name, asked)]
        if not found:
            names = [candidate.name for candidate in candidates]
            raise OptionError(f"layers={asked!r} matches no layer.{did_you_mean(asked, names) or _such_as(names)}")
    elif isinstance(asked, type):
        found = [candidate for candidate in candidates if candidate.kind == kind_of(asked)]
        if not found:
            kinds = dict.fromkeys(candidate.kind.rpartition(".")[2] for candidate in candidates)
            raise OptionError(f"no layer of the model is a {kind_of(asked)}.{_such_as(kinds)}")
    elif callable(asked):
        found = [candidate for candidate in candidates if asked(candidate)]
        if not found:
            raise OptionError("the function given as layers selects none of the model's layers")
    else:
        raise OptionError(
            f"layers takes 'blocks', names, patterns, classes or a function, not a {type(asked).__name__}: {asked!r}"
        )
    return found


def _such_as(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f" There are: {', '.join(known[:_SHOWN])}{more}" if known else " The model has no layers inside"


def _outermost(names: Iterable[str]) -> list[str]:
    """Leave out each name that lies inside another one."""
    known = list(dict.fromkeys(names))
    kept = set(known)
    return [name for name in known if kept.isdisjoint(_containers(name))]


def _containers(name: str) -> Iterator[str]:
    """Yield the paths of the layers around a layer, the nearest first."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
