"""Shards of parameters and optimizer slots, as DTensors and as local memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor

from ....errors import OptionError
from ...engine import Slots

# torch 2.13: DTensor has no kernels for them; they would fail at the first step.
_WITHOUT_DTENSOR = ("Rprop",)
_FUSED_WITHOUT_DTENSOR = ("Adagrad", "SGD")


def refuse_without_dtensor(optimizer: torch.optim.Optimizer) -> None:
    """Refuse optimizers that cannot update shards.

    Raises:
        OptionError: it cannot, or cannot when fused.
    """
    name = type(optimizer).__name__
    if name in _WITHOUT_DTENSOR:
        raise OptionError(f"PyTorch's {name} cannot update the shards of FSDP: use another, or strategy 'ddp'")
    if name in _FUSED_WITHOUT_DTENSOR and any(group.get("fused") for group in optimizer.param_groups):
        raise OptionError(f"PyTorch's {name} cannot update the shards of FSDP when fused: leave fused=True out")


def rebind(optimizer: torch.optim.Optimizer, names: Mapping[torch.nn.Parameter, str], model: torch.nn.Module) -> None:
    """Make an optimizer built before sharding update the shards; its state, the same on all workers, is sharded alike.

    `names` has its parameters' names from before.
    """
    sharded = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [sharded[names[parameter]] for parameter in group["params"]]
    state = [(sharded[names[cast(torch.nn.Parameter, key)]], slots) for key, slots in optimizer.state.items()]
    optimizer.state.clear()
    for parameter, slots in state:
        optimizer.state[parameter] = {name: _cut(parameter, value) for name, value in slots.items()}


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return a DTensor's local tensor, without padding, detached; it may be empty."""
    with torch.no_grad():
        return cast(DTensor, tensor).to_local().detach()


def first_row(parameter: torch.nn.Parameter) -> int:
    """Return the number of rows on earlier ranks; FSDP splits rows as `torch.chunk` does."""
    mesh = cast(DTensor, parameter).device_mesh
    rows = parameter.shape[0]
    return min(mesh.get_local_rank() * -(-rows // mesh.size()), rows)


def sharded_like(parameter: torch.nn.Parameter, local: torch.Tensor) -> torch.Tensor:
    """Return this worker's shard of a tensor as a DTensor that is sharded like `parameter`."""
    like = cast(DTensor, parameter)
    return DTensor.from_local(
        local.view(local_of(parameter).shape),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def flat_slots(slots: Mapping[str, Any]) -> Slots:
    """Return an optimizer's slots for a parameter, with shards as flat views of their memory."""
    return {name: local_of(value).view(-1) if isinstance(value, DTensor) else value for name, value in slots.items()}


def _cut(parameter: torch.nn.Parameter, value: Any) -> Any:
    local = local_of(parameter)
    if not isinstance(value, torch.Tensor):
        return value
    if value.shape != parameter.shape:
        return value if value.device.type == "cpu" else value.to(local.device)  # a counter follows offloaded shards
    own = value.narrow(0, first_row(parameter), local.shape[0])
    return sharded_like(parameter, own.to(local.device, copy=True).contiguous())
