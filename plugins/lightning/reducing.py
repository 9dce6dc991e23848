"""How the strategies of Trainer and Fabric weigh a loss, and reduce gradients by the engines of ours."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch

from ...adapters.torch.engine import Engine
from ...adapters.torch.placeholder import refuse_gradients_of_nothing
from ...adapters.torch.weighing import is_nothing, weigh


class Reducing:
    """Comes before a strategy class of Lightning's."""

    world_size: int

    def _reduce_nothing_yet(self) -> None:
        self._of_optimizer: dict[int, Engine] = {}
        self._reduced: set[Engine] = set()
        self._counts_nothing = False

    @abstractmethod
    def engine_of(self, optimizer: Any) -> Engine | None:
        """Return the engine that has this optimizer; `None` for one that updates nothing."""

    def weigh(self, loss: torch.Tensor, weight: int, total: int) -> torch.Tensor:
        """Return the loss of `weight` of `total` samples so that a mean over workers is one over the samples."""
        self._counts_nothing |= is_nothing(loss, weight)
        return weigh(loss, weight, total, self.world_size)

    def reduce_gradients(self, optimizer: Any) -> None:
        """Make this optimizer's gradients the mean over all workers, unless they are since the last backward pass."""
        engine = self.engine_of(optimizer)
        if engine is not None and engine not in self._reduced:
            with engine.waiting():
                engine.reduce_gradients()
            self._reduced.add(engine)
            if self._counts_nothing:
                self._counts_nothing = False
                refuse_gradients_of_nothing(engine)

    def reducing(self, optimizer: Any, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Return an optimizer's closure that leaves reduced gradients."""

        def closure_and_reduction() -> Any:
            result = closure()
            self.reduce_gradients(optimizer)
            return result

        return closure_and_reduction


class ReducingFirst:
    """A precision plugin's `clip_gradients`, of gradients that are reduced."""

    def __init__(self, strategy: Reducing, plugin: Any) -> None:
        self._strategy = strategy
        self._plugin = plugin

    def __call__(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self._strategy.reduce_gradients(optimizer)
        type(self._plugin).clip_gradients(self._plugin, optimizer, *args, **kwargs)
