"""PyTorch's fully sharded data parallelism, FSDP2 (https://arxiv.org/abs/2304.11277, `torch.distributed.fsdp`)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from ....capabilities import Capabilities
from ....errors import OptionError
from ...elementwise import refuse_unless_elementwise
from ...engine import Engine, model_of
from ...meta import allocate
from ...process_group import ProcessGroupStrategy, share_from_rank_0
from .engine import FSDPEngine, Root
from .state import rebind, refuse_without_dtensor
from .units import check_shardable, choose_units

_PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FSDPStrategy(ProcessGroupStrategy):
    """Each worker keeps a shard of parameters, gradients and optimizer, and blocks are gathered while they compute.

    Use it if the model with its optimizer does not fit into one worker's memory: each of N workers keeps 16/N bytes per
    parameter, for Adam in float32, with accumulation too. It needs an elementwise optimizer of torch.optim.

    All workers must run the same blocks in the same order, but their losses need not use all outputs. Outside of a step
    call the model itself, on all workers: its submodules alone hold shards.

    Args:
        wrap: the blocks that are gathered separately, not with the whole model: names of module classes; or a number of
            parameters from which an element of an nn.ModuleList or nn.Sequential is a block. A block must be called to
            be used. An empty list gathers the whole model at once.
        reshard_after_forward: free gathered blocks after forward, and gather them again in backward.
        precision: "float32" computes in the parameters' own type; "bf16" and, on CUDA, "fp16" (with a dynamic loss
            scale) gather and compute in half precision, and keep and reduce in float32; both are lossy.
        offload: keep shards and optimizer on the CPU, and reduce there by Gloo; only on CUDA, as without a GPU they are
            there already.
    """

    def __init__(
        self,
        wrap: Sequence[str] | int = 1_000_000,
        reshard_after_forward: bool = True,
        precision: Literal["float32", "bf16", "fp16"] = "float32",
        offload: bool = False,
        backend: str | None = None,
        timeout: float = 1800,
        device: str | None = None,
    ) -> None:
        super().__init__(backend, timeout, device)
        self._wrap = _checked_wrap(wrap)
        if not isinstance(reshard_after_forward, bool):
            raise OptionError(f"reshard_after_forward={reshard_after_forward!r} must be True or False")
        if precision not in _PRECISIONS:
            raise OptionError(f"precision={precision!r} must be one of {', '.join(_PRECISIONS)}")
        if precision == "fp16" and self.device.type == "cpu":
            raise OptionError("precision='fp16' is for GPUs: on the CPU use 'bf16' or 'float32'")
        if offload and self.device.type == "cpu":
            raise OptionError("offload=True keeps shards on the CPU, where device='cpu' has them already: leave it out")
        if offload and backend is None:
            self._backend = "cpu:gloo,cuda:nccl"  # clipping and checkpoints reduce CPU tensors
        self._reshard_after_forward = reshard_after_forward
        self._precision = precision
        self._offload = offload
        self._mesh: DeviceMesh | None = None
        self.capabilities = Capabilities(
            "torch",
            accelerators=frozenset({"cpu", "cuda"}),
            shards=frozenset({"parameters", "gradients", "optimizer"}),
            accumulates_locally=False,
            exact=precision == "float32",
        )

    def place(self, module: torch.nn.Module) -> torch.nn.Module:
        # It stays on the CPU: `wrap` moves and shards one block after the other, so that no GPU holds all of them.
        allocate(module, torch.device("cpu"), self.worker)
        return module

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        refuse_unless_elementwise(optimizer, self.name)
        refuse_without_dtensor(optimizer)
        model = model_of(module)
        units = choose_units(model, self._wrap)
        check_shardable(model, units)
        root = Root(module)
        self._shard_all(root, model, units, optimizer)
        engine = FSDPEngine(root, model, units, optimizer, self)
        if self._precision == "fp16":
            engine.scale_loss(torch.amp.GradScaler(self.device.type))
        self.settle_before_leaving(engine.settle, keep=False)
        self.release_after_leaving(engine)
        return engine

    def _shard_all(
        self,
        root: torch.nn.Module,
        model: torch.nn.Module,
        units: Sequence[torch.nn.Module],
        optimizer: torch.optim.Optimizer,
    ) -> None:
        names = {parameter: name for name, parameter in model.named_parameters()}
        moved: set[torch.Tensor] = set()
        compute_type = _PRECISIONS[self._precision]
        kept_type = None if compute_type is None else torch.float32
        for unit in units:
            self._move(unit, moved)
            self._shard(unit, MixedPrecisionPolicy(compute_type, kept_type), self._reshard_after_forward)
        # The model's own parameters stay gathered from the start of a step to the end of its backward, for any use in
        # loss_fn. Its outputs are cast to float32 for the loss.
        self._move(root, moved)
        self._shard(model, MixedPrecisionPolicy(compute_type, kept_type, kept_type), False)
        self._shard(root, MixedPrecisionPolicy(cast_forward_inputs=False), False)
        with torch.no_grad():
            root()  # FSDP's root is the module that runs first
        rebind(optimizer, names, model)

    def _move(self, module: torch.nn.Module, moved: set[torch.Tensor]) -> None:
        """Move what is not in `moved` yet to this worker's device, with rank 0's values."""
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            if tensor in moved or isinstance(tensor, DTensor):
                continue
            moved.add(tensor)
            if tensor.device != self.device:
                own = tensor.detach()
                # Where rank 0's values replace them, nothing is copied, and memory that was never written is not used.
                tensor.data = own.to(self.device) if self.worker.is_main else torch.empty_like(own, device=self.device)
            share_from_rank_0(tensor.detach())

    def _shard(self, module: torch.nn.Module, precision: MixedPrecisionPolicy, reshard_after_forward: bool) -> None:
        if self._mesh is None:
            # Of the group that there is: PyTorch may else make one on NCCL, also beside Gloo, where GPUs are shared.
            self._mesh = DeviceMesh.from_group(cast(dist.ProcessGroup, dist.group.WORLD), self.device.type)
        fully_shard(
            module,
            mesh=self._mesh,
            reshard_after_forward=reshard_after_forward,
            mp_policy=precision,
            offload_policy=CPUOffloadPolicy() if self._offload else OffloadPolicy(),
        )


def _checked_wrap(wrap: Sequence[str] | int) -> tuple[str, ...] | int:
    if isinstance(wrap, int) and not isinstance(wrap, bool) and wrap > 0:
        return wrap
    if isinstance(wrap, (list, tuple)) and all(isinstance(name, str) for name in wrap):
        return tuple(wrap)
    raise OptionError(
        f"wrap={wrap!r} must be a list of names of module classes, or a positive number of parameters from which an "
        "element of an nn.ModuleList or nn.Sequential is gathered separately"
    )
