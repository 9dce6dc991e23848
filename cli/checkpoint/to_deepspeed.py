"""Write a checkpoint in the format of DeepSpeed's ZeRO, for one of its stages 1 to 3 and one number of workers.

DeepSpeed's universal format is independent of the world size, but loading it restores neither buffers nor frozen
parameters at any stage, and at stage 3 only Adam's state and the first group's settings
(`DeepSpeedEngine._load_checkpoint`,
`DeepSpeedZeroOptimizer_Stage3.load_hp_checkpoint_state_from_checkpoint_dir_stage3`, 0.19.8).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import torch

from ...adapters.checkpoint.manifest import slots_by_parameter
from ...adapters.errors import CheckpointError
from ...adapters.torch.checkpoint import CheckpointReader
from ...adapters.torch.checkpoint.dtypes import dtype_of
from ...adapters.torch.checkpoint.reader import Target
from ...adapters.torch.elementwise import ELEMENTWISE
from ...adapters.torch.engines.deepspeed.compat import fragment_address, loss_scaler, zero_config, zero_stage
from ...adapters.torch.engines.deepspeed.library import import_deepspeed
from .model_state import ModelState
from .places import new_place
from .zero_layout import Partition, joined, shard_size, sharded, sub_groups

CLIENT_STATE = "farandole"
_DEEPSPEED_OPTIMIZERS = ("DeepSpeedCPUAdam", "FusedAdam")
_FLAT = object()


def write_deepspeed(path: str, out: str, stage: int, workers: int, bf16: bool) -> None:
    """Write a folder that DeepSpeed's `engine.load_checkpoint` loads, with its default layout.

    With `bf16`, it is for an engine that computes in bf16 and updates in float32; else for float32 only. Memory holds
    one worker's partition at a time and, at stages 1 and 2, the model. What DeepSpeed does not save is in the client
    state that it returns, under the key "farandole": progress, extras and the states of callbacks.

    Raises:
        CheckpointError: the checkpoint is missing, torn or damaged, or DeepSpeed could not continue its curve; or `out`
            exists.
    """
    source = _Source(path, stage, workers)
    progress = source.reader.manifest.progress
    tag = f"epoch{progress.epoch}_step{progress.step}"
    with new_place(out) as place:
        folder = place / tag
        folder.mkdir(parents=True)
        prefix = "bf16_" if bf16 else ""
        for rank in range(workers):
            torch.save(source.optimizer_file(rank), folder / f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            if stage == 3:
                torch.save(source.model_file(rank), folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        if stage < 3:
            torch.save(source.model_file(0), folder / "mp_rank_00_model_states.pt")
        (place / "latest").write_text(tag)


class _Source:
    """A checkpoint, and the contents of DeepSpeed's files for it."""

    def __init__(self, path: str, stage: int, workers: int) -> None:
        deepspeed = import_deepspeed(torch.device("cpu"))
        self._version: str = deepspeed.__version__
        self._stage, self._workers = zero_stage(stage), workers
        self.reader = CheckpointReader(path)
        self._state = ModelState(self.reader)
        self._objects = self.reader.objects
        groups = [group["params"] for group in self._objects["groups"]]
        frozen = set(self._objects.get("frozen", ()))
        shapes = {name: torch.Size(self._state.info(name).shape) for name in frozen.union(*groups)}
        self._shapes = shapes
        self._groups = [
            {name: shapes[name].numel() for name in group if name not in frozen and shapes[name].numel()}
            for group in groups
        ]
        trained = {name for group in self._groups for name in group}
        self._kept_out = sorted(shapes.keys() - trained)  # not in ZeRO's partitions: frozen or empty parameters
        _check(path, self.reader, trained)
        self._slots = [_slots_of(path, self.reader, group) for group in self._groups]
        limit: int = zero_config()().sub_group_size
        self._parts = [sub_groups(group, workers, limit) if stage == 3 else [group] for group in self._groups]

    def model_file(self, rank: int) -> dict[str, Any]:
        """Return the content of a file of model states: of worker `rank` at stage 3, else of all workers."""
        manifest = self.reader.manifest
        steps = [int(slots["step"]) for slots in self._slots if "step" in slots]
        in_order = (OrderedDict((name, self._shapes[name]) for name in part) for group in self._parts for part in group)
        kept: dict[str, Any] = {"frozen_param_shapes": None, "frozen_param_fragments": None}  # as at stage 1
        if self._stage > 1:
            kept["frozen_param_shapes"] = OrderedDict((name, self._shapes[name]) for name in self._kept_out)
            kept["frozen_param_fragments"] = {name: self._fragment(name, rank) for name in self._kept_out}
        return {
            "module": self._module(),
            "buffer_names": [name for name in self._state.names if self._first(name) not in self._shapes],
            "optimizer": None,
            "param_shapes": list(in_order),
            "shared_params": {name: first for name, first in manifest.aliases.items() if first in self._shapes},
            **kept,
            "lr_scheduler": self._objects["scheduler"],
            "data_sampler": None,
            "random_ltd": None,
            "skipped_steps": 0,
            "global_steps": max(steps, default=0),
            "dp_world_size": self._workers,
            "mp_world_size": 1,
            "checkpoint_parallel_dimensions": {"pp_degree": 1, "tp_degree": 1},
            "ds_config": {},
            "ds_version": self._version,
            CLIENT_STATE: {
                "progress": manifest.progress.as_json(),
                "extras": manifest.extras,
                "callbacks": manifest.callbacks,
            },
        }

    def optimizer_file(self, rank: int) -> dict[str, Any]:
        """Return the content of a worker's file of optimizer states."""
        layout = sharded if self._stage == 3 else joined
        partitions = [[layout(part, rank, self._workers) for part in group] for group in self._parts]
        weights = [self._read(partition, "model/{}") for group in partitions for partition in group]
        optimizer = self._optimizer(partitions)
        state = (
            self._stage_3(optimizer, weights) if self._stage == 3 else self._stage_1_2(optimizer, weights, partitions)
        )
        return {"optimizer_state_dict": state, "ds_config": {}, "ds_version": self._version}

    def _stage_1_2(
        self, optimizer: dict[str, Any], weights: list[torch.Tensor], partitions: Sequence[Sequence[Partition]]
    ) -> dict[str, Any]:
        own = [partition for (partition,) in partitions]
        return {
            "base_optimizer_state": optimizer,
            "single_partition_of_fp32_groups": [
                flat[: partition.size - partition.padding].clone() for flat, partition in zip(weights, own, strict=True)
            ],
            "zero_stage": self._stage,
            "group_paddings": [partition.padding for partition in own],
            "param_alignment_paddings": [[0] * len(group) for group in self._groups],
            "partition_count": [self._workers] * len(own),
            "ds_version": self._version,
            "param_slice_mappings": [
                OrderedDict((f.name, fragment_address(numel=f.numel, start=f.offset)) for f in partition.fragments)
                for partition in own
            ],
        }

    def _stage_3(self, optimizer: dict[str, Any], weights: list[torch.Tensor]) -> dict[str, Any]:
        return {
            "zero_stage": self._stage,
            "loss_scaler": loss_scaler(1.0),
            "dynamic_loss_scale": False,
            "overflow": False,
            "partition_count": self._workers,
            "optimizer_state_dict": optimizer,
            "fp32_flat_groups": weights,
        }

    def _optimizer(self, partitions: Sequence[Sequence[Partition]]) -> dict[str, Any]:
        """Return the state dict of a torch optimizer whose parameters are the partitions."""
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        numbers = count()
        for group, slots, own in zip(self._objects["groups"], self._slots, partitions, strict=True):
            numbered = [(next(numbers), partition) for partition in own]
            groups.append({**group, "params": [number for number, _ in numbered]})
            for number, partition in numbered if slots else ():
                state[number] = {
                    slot: self._read(partition, f"optimizer/{{}}/{slot}") if value is _FLAT else value
                    for slot, value in slots.items()
                }
        return {"state": state, "param_groups": groups}

    def _read(self, partition: Partition, tensor: str) -> torch.Tensor:
        """Return a worker's partition of weights or of a slot; missing values are zero, as in ZeRO."""
        values = torch.zeros(partition.size)
        targets = ((tensor.format(f.name), f.start, values.narrow(0, f.offset, f.numel)) for f in partition.fragments)
        self.reader.read_into(Target(*target) for target in targets if target[0] in self.reader.tensors)
        return values

    def _module(self) -> dict[str, Any]:
        """Return the module's state dict as DeepSpeed's engine has it: at stage 3 parameters are empty."""
        values: dict[str, Any] = dict(self._state.others)
        for name in sorted(self._state.names, key=lambda name: (self._first(name) != name, name)):
            first = self._first(name)
            if first != name:
                values[name] = values[first]
            elif self._stage == 3 and name in self._shapes:
                values[name] = torch.empty(0, dtype=dtype_of(self._state.info(name).dtype))
            else:
                values[name] = self._state.read(name)
        return values

    def _fragment(self, name: str, rank: int) -> torch.Tensor:
        """Return a worker's shard of a parameter that is not in the partitions."""
        if self._stage < 3:
            return self._state.read(name)
        numel = self._shapes[name].numel()
        (fragment,) = sharded({name: numel}, rank, self._workers).fragments
        values = torch.zeros(shard_size(numel, self._workers), dtype=dtype_of(self._state.info(name).dtype))
        self.reader.read_into([Target(f"model/{name}", fragment.start, values[: fragment.numel])])
        return values

    def _first(self, name: str) -> str:
        return self.reader.manifest.aliases.get(name, name)


def _check(path: str, reader: CheckpointReader, trained: set[str]) -> None:
    optimizer = reader.manifest.optimizer
    if optimizer == "none":
        raise CheckpointError(
            f"{path} has no optimizer state, and so no order of parameters for DeepSpeed's partitions: "
            "load it in a training, and save that"
        )
    if optimizer not in (*ELEMENTWISE, *_DEEPSPEED_OPTIMIZERS):
        raise CheckpointError(
            f"the optimizer of {path} is {optimizer}, which is not known to be elementwise: "
            "DeepSpeed would continue another curve"
        )
    for name in sorted(trained):
        dtype = reader.tensors[f"model/{name}"].dtype
        if dtype not in ("float32", "bfloat16", "float16"):
            raise CheckpointError(f"{name!r} in {path} is {dtype}: DeepSpeed does not train it")


def _slots_of(path: str, reader: CheckpointReader, group: Mapping[str, int]) -> dict[str, Any]:
    """Return the optimizer's slots for a group: `_FLAT` for slots with a value per element, other values as they are.

    Raises:
        CheckpointError: a value that DeepSpeed keeps once for a group differs between parameters.
    """
    slots: dict[str, Any] = {}
    of: dict[str, str] = {}
    for name in group:
        for slot, value in reader.objects["slots"].get(name, {}).items():
            if slot in slots and bool(slots[slot] != value):
                raise CheckpointError(
                    f"DeepSpeed keeps one {slot!r} for a group of parameters, but in {path} it is {_word(slots[slot])} "
                    f"for {of[slot]!r} and {_word(value)} for {name!r}"
                )
            slots[slot], of[slot] = value, name
    flat = slots_by_parameter(reader.tensors)
    return slots | {slot: _FLAT for name in group for slot in flat[name]}


def _word(value: Any) -> str:
    return f"{value.item():g}" if isinstance(value, torch.Tensor) else str(value)
