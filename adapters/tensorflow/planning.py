"""What a plugin decides before a model's step is compiled, knowing the batch that it trains on."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

Loss = Callable[[Any, Any], Any]


class Planner(ABC):
    """Decides how one model's steps are compiled.

    generation: another number once steps must be compiled again.
    """

    generation = 0

    @abstractmethod
    def before_step(self, batch: Any, loss_fn: Loss) -> None:
        """Called before each step, on all workers alike, with the largest micro-batch of any worker.

        Args:
            batch: its structure, of `tf.TensorSpec`; in Keras with `None` for an optional input.
            loss_fn: the mean loss of such a micro-batch, as in `Strategy.prepare`.
        """


_PLANNERS: weakref.WeakKeyDictionary[Any, weakref.ref[Planner]] = weakref.WeakKeyDictionary()
"""Planners by their models, which they may hold."""


def plan_with(model: Any, planner: Planner | None) -> None:
    """Let a planner, which somebody else must hold, decide for this model from now on; or none."""
    if planner is None:
        _PLANNERS.pop(model, None)
    else:
        _PLANNERS[model] = weakref.ref(planner)


def planner_of(model: Any) -> Planner | None:
    """Return a model's planner."""
    reference = _PLANNERS.get(model)
    return None if reference is None else reference()
