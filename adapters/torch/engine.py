"""What an engine makes of a module: the primitives that a training step, ours or another framework's, is built from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


class LossModule(torch.nn.Module):
    """A model together with its loss, so that the engine wraps the whole forward pass.

    `loss_fn` gets the user's own model: its attributes and submodules work under every engine, which they do not on
    DistributedDataParallel's wrapper, and a call of a submodule cannot slip past the engine's hooks.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss_fn = (loss_fn,)  # in a tuple, so that a module is not registered as part of this one

    def forward(self, micro_batch: Any) -> torch.Tensor:
        return self._loss_fn[0](self.model, micro_batch)


class Engine:
    """One module on one engine. This base is plain PyTorch in one process; engines override what they do otherwise.

    For a step: `forward` and `backward` for each micro-batch, all but the last inside `no_sync()`; then
    `reduce_gradients()`, `clip_grad_norm()` and `update()`.
    """

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The parameters that the optimizer updates."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        return self.module(*inputs)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, forward and backward keep gradients on this worker."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to the parameters; outside `no_sync` the engine may start to reduce them."""
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce_gradients(self) -> None:
        """Return once each parameter's gradient is the mean over all workers, or `None` where no worker has one."""

    def clip_grad_norm(self, max_norm: float) -> torch.Tensor:
        """Scale the reduced gradients so that their joint L2 norm is at most `max_norm`; return it as it was."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, max_norm)

    def update(self) -> None:
        """Apply the gradients to the parameters."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)
