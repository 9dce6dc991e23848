"""What the frameworks' parts take and give: the options, and the checkpointing of one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .budget import Budget
from .choice import Plan
from .selection import Layers

if TYPE_CHECKING:
    from ...adapters.strategy import Strategy


@dataclass(frozen=True)
class Options:
    """The arguments of `GradientCheckpointing`, which describes them."""

    layers: Layers = "blocks"
    budget: Budget | None = None
    operators: bool | Sequence[Any] = False
    offload: bool = False


class Applied(ABC):
    """The checkpointing of one model. It keeps no strategy, so that it can be copied.

    plan: what was chosen last, the same on every worker; `None` before the first choice, and without a budget if
        nothing was measured.
    """

    plan: Plan | None = None

    def end_step(self, strategy: Strategy) -> None:
        """Called after each step on every worker: the place to choose, and to tell the others."""

    @abstractmethod
    def unapply(self) -> None:
        """Give the model back as it was."""
