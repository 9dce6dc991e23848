"""Refuse `optimizer.step()` in place of `training.step(batch)`: no engine reduced the gradients."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ..errors import StrategyStateError

if TYPE_CHECKING:
    from ..strategy import Strategy


class OwnSteps:
    """Knows whether one of the strategy's trainings is in its step: only then may an optimizer step."""

    def __init__(self) -> None:
        self._updating = False

    def is_updating(self) -> bool:
        """Whether one is in its step."""
        return self._updating

    @contextlib.contextmanager
    def updating(self) -> Iterator[None]:
        """Be in a step inside. An engine may step the optimizer while backward runs, as Horovod's Adasum does."""
        self._updating = True
        try:
            yield
        finally:
            self._updating = False

    def refuse_others(self, optimizer: torch.optim.Optimizer, strategy: Strategy) -> None:
        """Make each other step of this optimizer raise a `StrategyStateError`."""
        of = weakref.ref(strategy)  # an optimizer may outlive it

        def refuse(*_: Any) -> None:
            known = of()
            if known is not None and known.is_open and not self._updating:
                differ = ", and the workers' models would differ" if known.worker.world_size > 1 else ""
                raise StrategyStateError(
                    "optimizer.step() was called by hand: the gradients of loss.backward() are "
                    f"local{differ}. Write training.step(batch) in the place of both: it calls loss_fn for each "
                    "micro-batch, reduces the gradients, clips them and updates"
                )

        optimizer.register_step_pre_hook(refuse)
