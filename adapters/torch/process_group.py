"""Strategies on torch.distributed's process group: how they join it, and its collectives."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .. import entry
from ..errors import OptionError
from ..strategy import ReduceOp
from .compat import default_store
from .default_group import destroy_process_group
from .device import gpu_identity, refuse_shared_gpus, share_identities
from .forward_passes import ForwardPasses
from .objects import pack, unpack
from .rendezvous import adopt_process_group, init_process_group
from .strategy import Finish, TorchStrategy

_OPS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


def share_from_rank_0(tensor: torch.Tensor) -> None:
    """Give every worker rank 0's values; as bytes, because backends do not support all types."""
    flat = tensor.contiguous().reshape(-1)
    dist.broadcast(flat.view(torch.uint8), 0)
    tensor.copy_(flat.view(tensor.shape))


class ProcessGroupStrategy(TorchStrategy):
    """Base of engines that communicate through torch.distributed's default process group.

    Args:
        backend: "gloo", "nccl" or another of torch.distributed's; by default Gloo on the CPU and NCCL on CUDA.
        timeout: seconds that joining the job, or one collective, may take.
    """

    def __init__(self, backend: str | None = None, timeout: float = 1800, device: str | None = None) -> None:
        super().__init__(device)
        self._backend = backend or ("nccl" if self.device.type == "cuda" else "gloo")
        if not dist.is_backend_available(self._backend.split(":")[-1].split(",")[0]):
            raise OptionError(f"this PyTorch was built without the backend {self._backend!r}")
        if not isinstance(timeout, (int, float)) or timeout <= 0:
            raise OptionError(f"timeout={timeout!r} must be a positive number of seconds")
        self._timeout = timedelta(seconds=timeout)
        self._owns_group = False
        self._passes: weakref.WeakSet[ForwardPasses] = weakref.WeakSet()

    def start_all_reduce(self, tensor: torch.Tensor, op: ReduceOp, name: str) -> Finish:
        work = dist.all_reduce(tensor, _OPS[op], async_op=True)

        def finish() -> torch.Tensor:
            if work is not None:
                work.wait()
            return tensor

        return finish

    def count_forward_passes(self, modules: Sequence[torch.nn.Module], name: str) -> ForwardPasses:
        """Name the workers that call one of `modules`, which gather parameters, while others do not."""
        if not modules or self.device.type != "cpu":
            return ForwardPasses((), self.worker)
        passes = ForwardPasses(modules, self.worker, default_store(), name, in_step=self.own_steps.is_updating)
        self._passes.add(passes)
        return passes

    def _why_lost(self) -> str:
        return next((passes.alone for passes in self._passes if passes.alone), "")

    def _join(self) -> None:
        super()._join()
        if not adopt_process_group(self.launch):
            init_process_group(self.launch, self._backend, self._timeout)
            self._owns_group = True
            if self.device.type == "cuda" and "nccl" in self._backend:
                refuse_shared_gpus(share_identities(gpu_identity(self.device), self.worker, default_store()))

    def _leave(self, failed: bool) -> None:
        super()._leave(failed)
        if self._owns_group and failed:
            # Other workers may be inside a collective: the group is closed when all enter the next strategy, or when
            # the process ends.
            entry.close_later(destroy_process_group)
        elif self._owns_group:
            destroy_process_group()
        self._owns_group = False

    def _gather(self, value: Any) -> list[Any]:
        gathered: list[Any] = [None] * self.worker.world_size
        dist.all_gather_object(gathered, pack(value))
        return [unpack(data, self.device) for data in gathered]

    def _broadcast(self, value: Any, root: int) -> Any:
        is_root = self.worker.rank == root
        holder: list[Any] = [pack(value) if is_root else None]
        dist.broadcast_object_list(holder, src=root, device=self.device)
        return value if is_root else unpack(holder[0], self.device)

    def _barrier(self) -> None:
        dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)
