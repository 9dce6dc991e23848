"""What FSDP does not do itself in PyTorch before 2.13."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule

from ....errors import StrategyStateError

REDUCES_UNUSED = hasattr(FSDPModule, "set_reduce_scatter_unused_params")
RESETS = hasattr(FSDPModule, "reset_iter_state")


class Zeros:
    """Gives gathered parameters without a gradient zeros, so that all workers reduce the same.

    A block gets them when backward reaches it, and its gradients are added to them: so at most one block's are there.
    """

    def __init__(self, root: Any) -> None:
        self._gathered: dict[torch.nn.Module, Sequence[torch.nn.Parameter]] | None = {}
        if REDUCES_UNUSED:
            root.set_reduce_scatter_unused_params(True)
            self._gathered = None  # nothing to do

    def learn(self, module: torch.nn.Module, gathered: Sequence[torch.nn.Parameter]) -> None:
        """Remember a block's gathered parameters."""
        if self._gathered is not None:
            self._gathered[module] = gathered

    def begin_backward(self, reached: set[torch.nn.Module]) -> None:
        """Fill the blocks that backward does not reach, because no output of theirs needs a gradient."""
        for module in self._gathered or ():
            if module not in reached:
                self.fill(module)

    def fill(self, module: torch.nn.Module) -> None:
        """Fill a block."""
        for parameter in self._gathered.get(module, ()) if self._gathered else ():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


class Resetting:
    """Frees what is gathered, and forgets what an exception left.

    Raises:
        StrategyStateError: an exception ended a backward pass, and this PyTorch cannot forget it.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._is_stuck = False

    def __call__(self) -> None:
        if RESETS:
            self._root.reset_iter_state()
            return
        if self._is_stuck:
            raise StrategyStateError(
                f"an exception ended a backward pass, after which FSDP of PyTorch {torch.__version__} cannot go on: "
                "start the program anew, or pip install --upgrade torch (2.13 can)"
            )
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # After an exception the next all-gather does not wait for what changed the shards, on another stream.
            torch.cuda.synchronize()
        for module in self._root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def backward_failed(self) -> None:
        """Note that an exception ended a backward pass."""
        self._is_stuck = True
