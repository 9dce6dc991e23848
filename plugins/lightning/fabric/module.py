"""The modules that Fabric runs in place of the user's."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from ....adapters import OptionError
from ....adapters.torch.engine import CallingModule
from ....adapters.torch.engines.deepspeed.engine import ZeroEngine
from ....adapters.torch.placeholder import without_side_effects
from .data import LossShares


class SetUpModule(torch.nn.Module):
    """Runs the module, and reports that it runs.

    module: the user's.
    has_optimizer: whether an engine reduces its gradients.
    """

    def __init__(self, module: torch.nn.Module, shares: LossShares) -> None:
        super().__init__()
        self.module = module
        self.has_optimizer = False
        self.ran_without_optimizer = False
        self._shares = shares

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not self.has_optimizer and self.training and torch.is_grad_enabled():
            self.ran_without_optimizer |= any(parameter.requires_grad for parameter in self.module.parameters())
        self._shares.run(self.training)
        with contextlib.ExitStack() as stack:
            if self._shares.counts_for_nothing():
                stack.enter_context(without_side_effects(self.module))
            return self.run(args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the module."""
        return self.module(*args, **kwargs)


class ZeroModule(SetUpModule):
    """Runs the module inside DeepSpeed's engine, which gathers partitioned parameters.

    pending: backward passes since the last update.
    """

    def __init__(self, module: torch.nn.Module, shares: LossShares, engine: ZeroEngine) -> None:
        super().__init__(module, shares)
        self.has_optimizer = True
        self.pending = 0
        self.engine = engine
        self.deepspeed_engine = engine.deepspeed_engine  # a child, for `train()` and `eval()`
        self._ran = False

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._ran |= torch.is_grad_enabled()
        (output,) = self.engine.forward(args, kwargs)
        return output

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the engine's backward.

        Raises:
            OptionError: it is the second for one forward pass, or has arguments.
        """
        if args or kwargs:
            raise OptionError("fabric.backward() with an argument: DeepSpeed runs backward itself and accepts none")
        if not self._ran:
            raise OptionError(
                "fabric.backward() a second time after one forward pass, and DeepSpeed would lose the gradients of the "
                "first: add up the losses and call it once"
            )
        self._ran = False
        self.pending += 1
        self.engine.backward(loss)


class Called(CallingModule):
    """The module for an engine: it takes a call's arguments as two values, and returns the result in a tuple.

    The engine would take a tensor that a module returns for the loss.
    """

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any]:
        return (self.model(*args, **kwargs),)
