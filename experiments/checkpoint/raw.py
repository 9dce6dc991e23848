"""The raw side: the same bytes, saved with torch's distributed checkpoint (DCP) without Farandole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

from ...adapters import Worker

State = dict[str, Any]


def save(state: State, path: Path, worker: Worker) -> None:
    """Save on all workers; without a process group, each by itself. DCP syncs files to disk, as ours do."""
    if dist.is_initialized():
        dcp_save(state, checkpoint_id=path)
    else:
        dcp_save(state, checkpoint_id=path / str(worker.rank), no_dist=True)


def _state_dict(training: Any, worker: Worker) -> State:
    """As in https://docs.pytorch.org/tutorials/recipes/distributed_checkpoint_recipe.html; DCP splits replicas."""
    model, optimizer = get_state_dict(training.model, training.optimizer)
    return {"model": model, "optimizer": optimizer}


def _partitions(training: Any, worker: Worker) -> State:
    """The flat partition that this worker updates under ZeRO, and its slots."""
    whole = {}
    for tensor in _tensors(training):
        storage = tensor.untyped_storage()  # of the whole partition: DCP would copy a view first
        whole[storage.data_ptr()] = torch.empty(0, dtype=tensor.dtype).set_(storage)
    return {f"{worker.rank}/{number}": tensor for number, tensor in enumerate(whole.values())}


def _dealt(training: Any, worker: Worker) -> State:
    """Every N-th of the replicated tensors."""
    own = sorted(_tensors(training), key=torch.Tensor.numel)[worker.rank :: worker.world_size]
    return {str(number): tensor for number, tensor in enumerate(own)}


def _tensors(training: Any) -> list[torch.Tensor]:
    shards = [training.engine.shard(parameter) for parameter in training.engine.parameters]
    return [tensor for shard in shards for tensor in (shard.weight, *shard.slots.values()) if tensor.numel() > 1]


STATES: dict[str, Callable[[Any, Worker], State]] = {
    "local": _dealt,
    "ddp": _state_dict,
    "horovod": _dealt,
    "fsdp": _state_dict,
    "deepspeed_zero_1": _partitions,
    "deepspeed_zero_2": _partitions,
    "deepspeed_zero_3": _partitions,
}
"""What a worker gives to DCP, by strategy."""
