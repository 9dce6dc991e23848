"""PyTorch DistributedDataParallel (https://arxiv.org/abs/2006.15704)."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.autograd.graph import get_gradient_edge
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from ...capabilities import COMPLEX, REAL, Capabilities
from ...errors import OptionError
from ..earlier import GradientCounts
from ..engine import Engine
from ..process_group import ProcessGroupStrategy
from ..waiting import Note

# Buffers are broadcast once, not at each forward: Horovod and the sharding engines do not either, and one meaning
# serves all. torch 2.13 renamed the argument and warns of the old name.
_RENAMED = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters
_BUFFERS_STAY: dict[str, Any] = {"forward_sync_buffers" if _RENAMED else "broadcast_buffers": False}
_HOOKS = ("none", "fp16", "bf16", "powersgd")


class DDPStrategy(ProcessGroupStrategy):
    """Every worker has the whole model, and DDP averages gradients over the workers while backward runs.

    Take it first: it is the fastest one where model, gradients and optimizer fit into each worker's memory (16 bytes a
    parameter for Adam in float32), and it trains any model and optimizer. Where they do not fit, take fsdp.

    Args:
        bucket_cap_mb: size in MiB of the buckets that gradients are reduced in; by default DDP's own.
        gradient_as_bucket_view: keep gradients in the buckets instead of beside them, which saves 4 bytes a parameter.
        static_graph: promise that every step uses the same parameters. The first step then reduces each micro-batch.
        find_unused_parameters: let a step leave parameters unused; without it DDP stops at such a step.
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
        self._find_unused = find_unused_parameters and not static_graph
        self.capabilities = Capabilities(
            "torch",
            accelerators=frozenset({"cpu", "cuda"}),
            dtypes=REAL | COMPLEX if comm_hook == "none" else REAL,
            exact=comm_hook == "none",
        )

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        replica = DistributedDataParallel(module, **_BUFFERS_STAY, **self._ddp_options)
        if self._comm_hook == "powersgd":
            rank, first = self._powersgd
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, start_powerSGD_iter=first)
            replica.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        elif self._comm_hook != "none":
            hook = default_hooks.fp16_compress_hook if self._comm_hook == "fp16" else default_hooks.bf16_compress_hook
            replica.register_comm_hook(None, hook)
        counts = GradientCounts(self, f"ddp{self.next_training()}") if self._find_unused else None
        engine = _DDPEngine(replica, optimizer, counts)
        self.settle_before_leaving(engine.settle, keep=False)
        self.release_after_leaving(engine)
        return engine


class _DDPEngine(Engine):
    """DDP waits in backward until each parameter has had its turn, so those that a loss does not use are given it.

    DDP's own way to find them, by the graph before backward, costs a walk and a warning, and takes what a reentrant
    checkpoint has not recomputed yet for unused.

    Args:
        counts: for the counts of workers that have a gradient; `None` where all parameters are used, or DDP looks.
    """

    module: DistributedDataParallel

    def __init__(
        self, module: DistributedDataParallel, optimizer: torch.optim.Optimizer, counts: GradientCounts | None
    ) -> None:
        super().__init__(module, optimizer)
        self._counts = counts
        self._first_step = True
        self._last_gradient = 0.0  # when this worker had its last one
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._reached: set[torch.Tensor] = set()  # by this backward
        self._used: set[torch.Tensor] = set()  # in this step
        self._hooks: list[Any] = []
        if counts is not None:
            self._hook(self._note_reached)

    def time_waiting(self, note: Note) -> None:
        super().time_waiting(note)
        self._hook(self._note_gradient)

    def release(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _hook(self, note: Callable[[torch.Tensor], None]) -> None:
        """Have `note` called with each parameter that backward has reached."""
        for parameter in self._trained:
            # Where DDP has its own: it is called without a gradient too.
            accumulator = get_gradient_edge(parameter).node
            self._hooks.append(accumulator.register_hook(_without_gradients(note, parameter)))

    def _note_reached(self, parameter: torch.Tensor) -> None:
        self._reached.add(parameter)
        if parameter.grad is not None:
            self._used.add(parameter)

    def _note_gradient(self, _parameter: torch.Tensor) -> None:
        self._last_gradient = time.perf_counter()

    def backward(self, loss: torch.Tensor) -> None:
        self._last_gradient = 0.0
        self._reached.clear()
        super().backward(loss)
        synchronizes = self._counts is not None and self.module.require_backward_grad_sync
        if synchronizes and len(self._reached) < len(self._trained):
            self._reach([parameter for parameter in self._trained if parameter not in self._reached])
        if self._last_gradient:  # DDP waits at the end of backward, for all of its buckets
            self.waiting.since(self._last_gradient)

    def _reach(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Have DDP take the rest of its parameters as ready, with no gradient of this micro-batch."""
        frozen = [parameter for parameter in parameters if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        _Nothing.apply(*parameters).backward()  # type: ignore[no-untyped-call]
        for parameter in frozen:
            parameter.requires_grad_(False)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        # A static graph is recorded by a first backward that synchronizes, and DDP asserts when there was none.
        if self._first_step and self.module.static_graph:
            return contextlib.nullcontext()
        return self.module.no_sync()

    def reduce_gradients(self) -> None:
        self._first_step = False
        if self._counts is None:
            return
        # DDP reduces zeros for a parameter without a gradient, and the optimizer would decay it.
        present = [parameter in self._used for parameter in self._trained]
        self._counts.start(present)
        if not all(present):
            for parameter, count in zip(self._trained, self._counts.read(), strict=True):
                if count == 0:
                    parameter.grad = None

    def zero_grad(self) -> None:
        super().zero_grad()
        self._used.clear()

    def settle(self) -> None:
        """Wait for counts that this worker did not need to know."""
        if self._counts is not None:
            self._counts.settle()


def _without_gradients(note: Callable[[torch.Tensor], None], parameter: torch.Tensor) -> Callable[..., None]:
    return lambda inputs, outputs: note(parameter)


class _Nothing(torch.autograd.Function):
    """A number whose backward visits `parameters`, with no gradient."""

    @staticmethod
    def forward(ctx: Any, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.parameters = len(parameters)
        return parameters[0].new_zeros((), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return (None,) * ctx.parameters
