"""What the frameworks' parts take and give: the options, and the checkpointing of one model."""

from __future__ import annotations

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


class Applied:
    """The checkpointing of one model. It keeps no strategy, so that it can be copied.

    Methods do nothing until they are overridden; every worker calls them at the same point of the training.

    plan: what was chosen last, the same on every worker; `None` before the first choice, and without a budget if
        nothing was measured.
    """

    plan: Plan | None = None

    def begin(self, strategy: Strategy) -> None:
        """Called before the first step, when all layers are built."""

    def begin_step(self, strategy: Strategy) -> None:
        """Called before each step."""

    def end_step(self, strategy: Strategy) -> None:
        """Called after each step: the place to choose, and to tell the others."""

    def end_training(self) -> None:
        """Called once after the last step, also if it failed; call no collective in it."""

    def unapply(self) -> None:
        """Give the model back as it was."""
