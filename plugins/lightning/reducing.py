"""How Trainer's and Fabric's strategies weigh a loss, and reduce gradients by our engines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from ...adapters.torch.engine import Engine
from ...adapters.torch.placeholder import check_placeholder_gradients
from ...adapters.torch.weighing import is_placeholder_not_finite, weigh


class Reducing:
    """A mixin before a strategy class of Lightning."""

    world_size: int

    def _reduce_nothing_yet(self) -> None:
        self._of_optimizer: dict[int, Engine] = {}
        self._reduced: set[Engine] = set()
        self._placeholder_not_finite = False

    @abstractmethod
    def engine_of(self, optimizer: Any) -> Engine | None:
        """Return the engine with this optimizer; `None` for an optimizer that updates nothing."""

    def weigh(self, loss: torch.Tensor, weight: int, total: int) -> torch.Tensor:
        """Scale the loss of `weight` of `total` samples so that the mean over workers is the mean over samples."""
        self._placeholder_not_finite |= is_placeholder_not_finite(loss, weight)
        return weigh(loss, weight, total, self.world_size)

    def reduce_gradients(self, optimizer: Any) -> None:
        """Average this optimizer's gradients over all workers, unless that was done since the last backward pass."""
        engine = self.engine_of(optimizer)
        if engine is not None and engine not in self._reduced:
            with engine.waiting():
                engine.reduce_gradients()
            self._reduced.add(engine)
            if self._placeholder_not_finite:
                self._placeholder_not_finite = False
                check_placeholder_gradients(engine)

    def reducing(self, optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return an optimizer's closure that also reduces the gradients."""

        def closure_and_reduction() -> Any:
            result = closure()
            self.reduce_gradients(optimizer)
            return result

        return closure_and_reduction


class ReducingFirst:
    """A precision plugin's `clip_gradients`, which reduces the gradients first."""

    def __init__(self, strategy: Reducing, plugin: Any) -> None:
        self._strategy = strategy
        self._plugin = plugin

    def __call__(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self._strategy.reduce_gradients(optimizer)
        type(self._plugin).clip_gradients(self._plugin, optimizer, *args, **kwargs)
