"""Load a checkpoint: read it, check that it is whole and fits, and only then change the training."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch

from ...checkpoint.folder import manifest_to_load
from ...checkpoint.manifest import Manifest, slots_by_parameter
from ...checkpoint.storage import Storage
from ...checkpoint.together import together
from ...errors import CheckpointError
from ...progress import Progress
from ..engine import Slots
from ..strategy import TorchStrategy
from .dtypes import dtype_of
from .names import Names, names_of
from .reader import CheckpointReader, Target
from .state import class_name, groups_of, slot_name, weight_name

if TYPE_CHECKING:
    from ..training import TorchTraining


def load(strategy: TorchStrategy, path: str | PathLike[str], training: TorchTraining) -> Progress:
    """Read a checkpoint; see `Training.load`."""
    failure, worker = f"cannot load {path}", strategy.worker
    # Rank 0's manifest decides, in case another checkpoint is committed meanwhile.
    manifest = together(strategy, lambda: manifest_to_load(Storage(path)) if worker.is_main else None, failure)[0]
    found: list[tuple[CheckpointReader, Names]] = []

    def read_and_check() -> None:
        reader, names = CheckpointReader(path, manifest), names_of(training.model)
        reader.verify(worker.rank, worker.world_size)
        check_fits(training, names, reader.manifest, reader.objects)
        found.append((reader, names))

    def change() -> None:
        restore(training, *found[0])

    together(strategy, read_and_check, failure)
    together(strategy, change, failure)
    together(strategy, training.engine.finish_loading, failure)
    if worker.is_main and not _has_optimizer(found[0][0].manifest):
        warnings.warn(
            f"{path} holds no optimizer state: the weights are loaded, optimizer and scheduler are unchanged",
            stacklevel=3,
        )
    return training.restore(found[0][0].manifest)


def check_fits(training: TorchTraining, names: Names, manifest: Manifest, objects: Mapping[str, Any]) -> None:
    """Compare a checkpoint with the training that will load it; change nothing.

    Raises:
        CheckpointError: names, shapes, or the kinds of optimizer or scheduler differ; the message names the first.
    """
    shapes = {name: tuple(training.engine.shape(parameter)) for name, parameter in names.parameters.items()}
    shapes |= {name: tuple(buffer.shape) for name, buffer in names.buffers.items()}
    saved = {name.removeprefix("model/"): info for name, info in manifest.tensors.items() if name.startswith("model/")}
    own_names = shapes.keys() | names.aliases.keys() | names.others.keys()
    saved_names = saved.keys() | manifest.aliases.keys() | objects["model"].keys()
    for name in sorted(own_names | saved_names):
        if name not in saved_names:
            raise CheckpointError(f"the model's {name!r} is not in the checkpoint")
        if name not in own_names:
            raise CheckpointError(f"the checkpoint's {name!r} is not in the model")
        if manifest.aliases.get(name) != names.aliases.get(name) or (name in shapes) != (name in saved):
            raise CheckpointError(f"{name!r} is tied to another parameter in only one of checkpoint and model")
        if name in shapes and shapes[name] != saved[name].shape:
            raise CheckpointError(
                f"{name!r} has shape {saved[name].shape} in the checkpoint, {shapes[name]} in the model"
            )
    for name, value in {**names.parameters, **names.buffers}.items():
        _check_type(name, dtype_of(saved[name].dtype), value.dtype)
    if not _has_optimizer(manifest):
        return
    _compare("optimizer", manifest.optimizer, class_name(training.optimizer))
    _compare("scheduler", manifest.scheduler, class_name(training.scheduler))
    # Frozen parameters are not updated, so it does not matter whether the optimizer has them.
    frozen = {name for name, parameter in names.parameters.items() if not parameter.requires_grad}
    own = [[name for name in group if name not in frozen] for group in groups_of(training.engine, names)]
    if own != [[name for name in group["params"] if name not in frozen] for group in objects["groups"]]:
        raise CheckpointError("its optimizer groups parameters in another way than this training's")


def restore(training: TorchTraining, reader: CheckpointReader, names: Names) -> None:
    """Load a checkpoint that `check_fits` has accepted; call `Engine.finish_loading` afterwards.

    Values are read directly into their memory, if it exists.
    """
    engine, objects = training.engine, reader.objects
    saved_slots = slots_by_parameter(reader.tensors)
    targets: list[Target] = []
    weights: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    slots: dict[torch.nn.Parameter, Slots] = {}
    for name, parameter in names.parameters.items():
        shard = engine.shard(parameter)
        targets.append(Target(weight_name(name), shard.start, shard.weight))
        weights.append((parameter, shard.weight))
        slots[parameter] = dict(objects["slots"].get(name, {}))
        for slot in saved_slots[name]:
            tensor = slot_name(name, slot)
            values, dtype = shard.slots.get(slot), dtype_of(reader.tensors[tensor].dtype)
            if not (isinstance(values, torch.Tensor) and values.shape == shard.weight.shape and values.dtype == dtype):
                values = torch.empty_like(shard.weight, dtype=dtype)
            targets.append(Target(tensor, shard.start, values))
            slots[parameter][slot] = values
    flat = {name: buffer.detach().reshape(-1) for name, buffer in names.buffers.items()}
    targets += [Target(weight_name(name), 0, values) for name, values in flat.items()]
    with torch.no_grad():
        reader.read_into(targets)
        for name, buffer in names.buffers.items():
            buffer.detach().copy_(flat[name].view(buffer.shape))
        for parameter, values in weights:
            engine.load_weight(parameter, values)
    if reader.manifest.loss_scale is not None:
        engine.load_loss_scale(reader.manifest.loss_scale)
    if objects["model"]:
        training.model.load_state_dict(objects["model"], strict=False)
    if not _has_optimizer(reader.manifest):
        return
    groups = [{key: value for key, value in group.items() if key != "params"} for group in objects["groups"]]
    engine.load_optimizer(groups, slots)
    if training.scheduler is not None:
        training.scheduler.load_state_dict(objects["scheduler"])


def _has_optimizer(manifest: Manifest) -> bool:
    """Whether it has optimizer state: ours always have, converted ones may not."""
    return manifest.optimizer != "none"


def _check_type(name: str, saved: torch.dtype, own: torch.dtype) -> None:
    """Refuse conversions between other types than floating-point ones, which only round."""
    if saved != own and not (saved.is_floating_point and own.is_floating_point):
        raise CheckpointError(f"{name!r} is of type {saved} in the checkpoint, {own} in the model")


def _compare(kind: str, saved: str, own: str) -> None:
    if saved != own:
        raise CheckpointError(f"its {kind} is {saved}, but this training uses {own}")
