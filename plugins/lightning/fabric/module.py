"""What Fabric runs in the place of a module that was set up."""

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
    """Runs the module, and tells on what.

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
        self.deepspeed_engine = engine.deepspeed_engine  # a child, so that it is told whether it trains
        self._ran = False

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._ran |= torch.is_grad_enabled()
        (output,) = self.engine.forward(args, kwargs)
        return output

    def backward(self, loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
        """Run backward by the engine.

        Raises:
            OptionError: a second time for one forward pass, or with arguments.
        """
        if args or kwargs:
            raise OptionError("an argument of fabric.backward(): DeepSpeed runs backward by itself and takes none")
        if not self._ran:
            raise OptionError(
                "fabric.backward() a second time after one forward pass, and DeepSpeed would lose the gradients of the "
                "first: add up the losses and call it once"
            )
        self._ran = False
        self.pending += 1
        self.engine.backward(loss)


class Called(CallingModule):
    """The module as an engine calls it: with all arguments of a call, and what it returns in a tuple.

    The engine looks at a tensor that a module returns as at the loss, which it is not here.
    """

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any]:
        return (self.model(*args, **kwargs),)
