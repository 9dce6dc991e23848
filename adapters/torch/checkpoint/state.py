"""A training's state for a checkpoint: slices of tensors that this worker writes, and objects beside them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from ...checkpoint.ranges import split_evenly
from ...errors import CheckpointError
from ...structure import map_structure
from ..engine import Engine, Slots
from .names import Names, names_of
from .writer import TensorSlice

if TYPE_CHECKING:
    from ..training import TorchTraining

OBJECTS = "objects.pt"


@dataclass
class State:
    """What this worker writes of a training's state.

    slices: the values that it writes.
    slots: the optimizer's other values (step counts), by parameter and slot; only of the parameters whose first element
        this worker writes.
    names: the model's names.
    """

    slices: list[TensorSlice]
    slots: dict[str, Slots]
    names: Names


def weight_name(name: str) -> str:
    """Return the tensor name of a parameter or buffer."""
    return f"model/{name}"


def slot_name(name: str, slot: str) -> str:
    """Return the tensor name of a parameter's optimizer slot."""
    if "/" in slot:
        raise CheckpointError(f"the optimizer's {slot!r} cannot be saved: a slot's name has no '/'")
    return f"optimizer/{name}/{slot}"


def state_of(training: TorchTraining, rank: int, world_size: int) -> State:
    """Return what this worker writes. Nothing is copied; replicated tensors are split evenly over the workers.

    Worker 0 writes the buffers, if possible: they may differ between workers (BatchNorm's do).
    """
    engine, names = training.engine, names_of(training.model)
    slots: dict[str, Slots] = {}
    own: list[TensorSlice] = []
    replicated = [TensorSlice(weight_name(name), tuple(b.shape), 0, b.detach()) for name, b in names.buffers.items()]
    buffer_bytes = sum(each.values.nbytes for each in replicated)
    for name, parameter in names.parameters.items():
        shard, shape = engine.shard(parameter), tuple(engine.shape(parameter))
        found = replicated if shard.replicated else own
        found.append(TensorSlice(weight_name(name), shape, shard.start, shard.weight))
        others: Slots = {}
        for slot, value in shard.slots.items():
            if slot == "step" and shape == ():  # a step count, although its shape is the parameter's
                others[slot] = value.reshape(()) if isinstance(value, torch.Tensor) else value
            elif isinstance(value, torch.Tensor) and value.shape == shard.weight.shape:
                found.append(TensorSlice(slot_name(name, slot), shape, shard.start, value))
            else:
                others[slot] = value
        if others and (rank == 0 if shard.replicated else shard.start == 0 and shard.weight.numel() > 0):
            slots[name] = plain(others)
    cuts = split_evenly([(p.values.numel(), p.values.element_size()) for p in replicated], world_size, buffer_bytes)
    for each, ends in zip(replicated, cuts, strict=True):
        start, end = ends[rank], ends[rank + 1]
        own.append(TensorSlice(each.tensor, each.shape, start, each.values.detach().reshape(-1)[start:end]))
    return State(own, slots, names)


def objects_of(training: TorchTraining, names: Names, slots: Mapping[str, Slots]) -> dict[str, Any]:
    """Return everything but the tensors: the optimizer's groups by parameters' names, and the rest of the state.

    groups: hyperparameters of each group, and "params", the names of its parameters.
    slots: as in `State.slots`, of all workers.
    scheduler: its state, or `None`.
    model: the model's state beside parameters and buffers, by name.
    frozen: names of the parameters that require no gradient.
    """
    hyperparameters = ({k: v for k, v in group.items() if k != "params"} for group in training.optimizer.param_groups)
    groups = [
        {**group, "params": own} for group, own in zip(hyperparameters, groups_of(training.engine, names), strict=True)
    ]
    scheduler = None if training.scheduler is None else training.scheduler.state_dict()
    frozen = [name for name, parameter in names.parameters.items() if not parameter.requires_grad]
    objects: dict[str, Any] = plain(
        {"groups": groups, "slots": dict(slots), "scheduler": scheduler, "model": names.others, "frozen": frozen}
    )
    return objects


def groups_of(engine: Engine, names: Names) -> list[list[str]]:
    """Return the names of the parameters that the optimizer updates, by its groups.

    Raises:
        CheckpointError: the model's state lacks one of them.
    """
    of = names.of_parameters
    if any(parameter not in of for parameter in engine.parameters):
        raise CheckpointError("the model's state_dict() leaves out a parameter that the optimizer updates")
    return [[of[parameter] for parameter in group] for group in engine.groups]


def pack(objects: Mapping[str, Any]) -> bytes:
    """Return objects in torch.save's format.

    Raises:
        CheckpointError: they could not be loaded without running code.
    """
    file = io.BytesIO()
    torch.save(dict(objects), file)
    file.seek(0)
    unsafe = get_unsafe_globals_in_checkpoint(file)
    if unsafe:
        raise CheckpointError(
            f"the state holds {unsafe[0]}, which could not be loaded without running code: "
            "keep tensors, numbers and text in it"
        )
    return file.getvalue()


def plain(structure: Any) -> Any:
    """Return a nested structure with NumPy's numbers as Python's, and tensors as copies on the CPU."""
    return map_structure(_plain, structure)


def _plain(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().to("cpu", copy=True)
    return leaf.item() if isinstance(leaf, np.generic) else leaf


def class_name(value: Any) -> str:
    """Return the name of the class of an optimizer or scheduler; "none" for `None`."""
    return "none" if value is None else type(value).__name__
