"""Choose the blocks of a model that FSDP gathers separately, and refuse what it cannot shard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch

from ....errors import OptionError, did_you_mean
from ...parameter_types import refuse_empty, refuse_scalars


def choose_units(model: torch.nn.Module, wrap: Sequence[str] | int) -> list[torch.nn.Module]:
    """Return the blocks below `model` that are gathered separately, inner ones before those that contain them.

    By size, a block's parameters exclude those of its inner blocks. A block that shares a parameter with the rest of
    the model is left to the model, so that the parameter stays one.

    Raises:
        OptionError: a class of `wrap` is not in the model, cannot be called, or shares a parameter.
    """
    holders: dict[torch.nn.Parameter, set[torch.nn.Module]] = defaultdict(set)
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            holders[parameter].add(module)
    candidates = _elements(model) if isinstance(wrap, int) else _of_classes(model, wrap)
    units: list[torch.nn.Module] = []
    taken: set[torch.nn.Parameter] = set()
    for module in reversed(list(model.modules())):  # inner modules come after those that contain them
        own = set(module.parameters()) - taken
        if module is model or module not in candidates or not own:
            continue
        inside = set(module.modules())
        shared = [parameter for parameter in own if not holders[parameter] <= inside]
        if isinstance(wrap, int):
            if shared or sum(parameter.numel() for parameter in own) < wrap:
                continue
        elif shared:
            raise OptionError(
                f"wrap names {type(module).__name__}, which shares the parameter {_name(model, shared[0])!r} with "
                "another module: leave it out, or name a class that contains all modules that share it"
            )
        units.append(module)
        taken |= own
    return units


def check_shardable(model: torch.nn.Module, units: Iterable[torch.nn.Module]) -> None:
    """Refuse models at which FSDP would fail.

    Raises:
        OptionError: a plain list, a scalar, empty or strided parameter, or mixed types.
    """
    if isinstance(model, (torch.nn.ModuleList, torch.nn.ModuleDict)):
        raise OptionError(f"FSDP does not shard a {type(model).__name__}: put it into a module")
    refuse_scalars(model, "fsdp")
    refuse_empty(model, "fsdp")
    for name, parameter in model.named_parameters():
        if not parameter.is_contiguous():
            raise OptionError(
                f"FSDP does not shard {name!r}, which is not contiguous in memory: set its data to data.contiguous()"
            )
    taken: set[torch.nn.Parameter] = set()
    for module in (*units, model):
        own = [parameter for parameter in module.parameters() if parameter not in taken]
        trained = {parameter.dtype: parameter for parameter in own if parameter.requires_grad}
        if len(trained) > 1:
            one, other = (
                f"{_name(model, p)!r} is {str(p.dtype).removeprefix('torch.')}" for p in [*trained.values()][:2]
            )
            raise OptionError(
                f"FSDP reduces parameters of one type together, but {one} and {other}: make them one type"
            )
        taken |= set(own)


def _elements(model: torch.nn.Module) -> set[torch.nn.Module]:
    containers = (m for m in model.modules() if isinstance(m, (torch.nn.ModuleList, torch.nn.Sequential)))
    return {element for container in containers for element in container if _has_forward(element)}


def _of_classes(model: torch.nn.Module, names: Sequence[str]) -> set[torch.nn.Module]:
    found = [(type(module).__name__, module) for module in model.modules()]
    known = {name for name, _ in found}
    for name in names:
        if name not in known:
            raise OptionError(f"wrap names {name!r}, of which the model has no module.{did_you_mean(name, known)}")
    chosen = {module for name, module in found if name in names and module is not model}
    for module in chosen:
        if not _has_forward(module):
            raise OptionError(
                f"wrap names {type(module).__name__}, which has no forward: name the class of its elements"
            )
    return chosen


def _has_forward(module: torch.nn.Module) -> bool:
    return type(module).forward is not torch.nn.Module.forward


def _name(model: torch.nn.Module, parameter: torch.nn.Parameter) -> str:
    return next(name for name, other in model.named_parameters() if other is parameter)
