"""PyTorch DistributedDataParallel (https://arxiv.org/abs/2006.15704)."""

from __future__ import annotations

import contextlib
import inspect
import time
from typing import Any, Literal

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ...capabilities import COMPLEX, REAL, Capabilities
from ...errors import OptionError
from ..engine import Engine
from ..process_group import ProcessGroupStrategy, share_from_rank_0
from ..waiting import Note
from .unused_parameters import UnusedParameters

# Buffers are broadcast once, not at each forward, as with Horovod and the sharding engines. torch 2.13 renamed the
# argument and warns about the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_BUFFERS_STAY: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
_HOOKS = ("none", "fp16", "bf16", "powersgd")


class DDPStrategy(ProcessGroupStrategy):
    """Every worker has the whole model, and DDP averages gradients over the workers while backward runs.

    Try it first: it trains any model and optimizer, and is fastest if model, gradients and optimizer fit into each
    worker's memory (16 bytes per parameter for Adam in float32). If they do not fit, use fsdp.

    Args:
        bucket_cap_mb: size of a gradient bucket in MiB; by default DDP's.
        gradient_as_bucket_view: keep gradients in the buckets, which saves 4 bytes per parameter.
        static_graph: promise that every step uses the same parameters. The first step then reduces each
            micro-batch.
        find_unused_parameters: let a step leave parameters unused; without it DDP stops at such a step. It costs next
            to nothing where none is unused.
        comm_hook: "fp16" and "bf16" halve the traffic, "powersgd" sends low-rank approximations
            (https://arxiv.org/abs/1905.13727); all of them are lossy.
        matrix_approximation_rank: of "powersgd": the rank of the approximations.
        start_powerSGD_iter: of "powersgd": the first step that is compressed.
    """

    def __init__(
        self,
        bucket_cap_mb: float | None = None,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        find_unused_parameters: bool = True,
        comm_hook: Literal["none", "fp16", "bf16", "powersgd"] = "none",
        matrix_approximation_rank: int = 1,
        start_powerSGD_iter: int = 1000,
        backend: str | None = None,
        timeout: float = 1800,
        device: str | None = None,
    ) -> None:
        super().__init__(backend, timeout, device)
        if comm_hook not in _HOOKS:
            raise OptionError(f"comm_hook={comm_hook!r} must be one of {', '.join(_HOOKS)}")
        if bucket_cap_mb is not None and bucket_cap_mb <= 0:
            raise OptionError(f"bucket_cap_mb={bucket_cap_mb} must be positive")
        if comm_hook == "powersgd" and start_powerSGD_iter < 2:
            raise OptionError(
                f"start_powerSGD_iter={start_powerSGD_iter} must be at least 2: DDP rebuilds its buckets first"
            )
        self._comm_hook = comm_hook
        self._powersgd = (matrix_approximation_rank, start_powerSGD_iter)
        self._ddp_options: dict[str, Any] = {
            "bucket_cap_mb": bucket_cap_mb,
            "gradient_as_bucket_view": gradient_as_bucket_view,
            "static_graph": static_graph,
        }
        self._may_leave_unused = find_unused_parameters and not static_graph
        self.capabilities = Capabilities(
            "torch",
            accelerators=frozenset({"cpu", "cuda"}),
            dtypes=REAL | COMPLEX if comm_hook == "none" else REAL,
            exact=comm_hook == "none",
        )

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        if not _RENAMED:  # then DDP does not send buffers at the start either
            for buffer in module.buffers():
                share_from_rank_0(buffer)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        unused = UnusedParameters(module, trained) if self._may_leave_unused and trained else None
        with contextlib.nullcontext() if unused is None else unused.added_to(module):
            replica = DistributedDataParallel(module, **_BUFFERS_STAY, **self._ddp_options)
        if self._comm_hook == "powersgd":
            rank, first = self._powersgd
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=first)
            replica.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif self._comm_hook != "none":
            hook = default_hooks.fp16_compress_hook if self._comm_hook == "fp16" else default_hooks.bf16_compress_hook
            replica.register_comm_hook(None, hook)
        engine = _DDPEngine(replica, optimizer, unused)
        self.release_after_leaving(engine)
        return engine


class _DDPEngine(Engine):
    module: DistributedDataParallel

    def __init__(
        self, module: DistributedDataParallel, optimizer: torch.optim.Optimizer, unused: UnusedParameters | None
    ) -> None:
        super().__init__(module, optimizer)
        self._unused = unused
        self._first_step = True
        self._reduces = False  # in the next backward pass
        self._last_gradient = _LastGradient()
        self._hooks: list[Any] = []

    def time_waiting(self, note: Note) -> None:
        super().time_waiting(note)
        if self._unused is not None:
            return
        for parameter in self.module.parameters():
            if parameter.requires_grad:
                hook = parameter.register_post_accumulate_grad_hook(self._last_gradient.note)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)

    def release(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def forward(self, *inputs: Any) -> Any:
        if torch.is_grad_enabled():
            self._reduces = bool(self.module.require_backward_grad_sync)
        return super().forward(*inputs)

    def backward(self, loss: torch.Tensor) -> None:
        unused = self._unused if self._reduces else None
        self._reduces = False
        if unused is not None:
            unused.note_gradients()
        self._last_gradient.time = 0.0
        try:
            super().backward(loss)
        except RuntimeError as error:
            if "mark a variable ready only once" not in str(error):
                raise
            raise OptionError(
                "DDP was given a parameter's gradient twice in one backward pass, as by a layer that is used in "
                "several reentrant checkpoints: write checkpoint(..., use_reentrant=False)"
            ) from error
        # DDP waits at the end of backward, for all of its buckets.
        if unused is not None:
            start = time.perf_counter()
            unused.finish_backward(loss)
            self.waiting.since(start)
        elif self._last_gradient.time:
            self.waiting.since(self._last_gradient.time)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        # DDP records a static graph in the first backward, which must synchronize, or DDP raises.
        if self._first_step and self.module.static_graph:
            return contextlib.nullcontext()
        return self.module.no_sync()

    def reduce_gradients(self) -> None:
        self._first_step = False

    def zero_grad(self) -> None:
        super().zero_grad()
        if self._unused is not None:
            for parameter in self._unused.parameters:  # also those that the optimizer does not update
                parameter.grad = None


class _LastGradient:
    """When this worker's last gradient came. Hooks keep this alive, and not the engine."""

    def __init__(self) -> None:
        self.time = 0.0

    def note(self, _parameter: torch.Tensor) -> None:
        self.time = time.perf_counter()
