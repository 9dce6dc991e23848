"""Keep activations within a budget: measure in a step, choose for all workers, and again for larger batches."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from ....adapters.errors import OptionError
from ..applied import Options
from ..choice import choose
from .apply import TorchCheckpointing
from .arguments import take_tensors
from .profile import Measured, Profile, largest_of, size_of

if TYPE_CHECKING:
    from ....adapters.strategy import Strategy
    from .layer import CheckpointedForward


class BudgetedCheckpointing(TorchCheckpointing):
    """Checkpoints the layers that a budget asks for.

    In the first step all candidates are checkpointed, and measured while they are recomputed: also what the operators
    take whose results may be kept, in memory and time. After it all workers
    choose from the same numbers: for each layer the most that any of them measured.

    The first candidate's inputs tell the size of a micro-batch. A larger one than measured is checkpointed whole and
    measured again; what is saved outside of the candidates is then taken to grow in proportion. On an engine that
    gathers parameters all workers do so, since they must gather the same ones: one small all-reduce for each
    micro-batch. On all engines there is one after each step.
    """

    def __init__(
        self, model: torch.nn.Module, layers: list[CheckpointedForward], options: Options, gathers: bool = False
    ) -> None:
        super().__init__(layers)
        self._model = weakref.ref(model)
        self._options = options
        self._gathers = gathers
        self._strategy: weakref.ref[Strategy] | None = None
        self._profile: Profile | None = None
        self._measured: Measured | None = None  # what was chosen by

    def begin_step(self, strategy: Strategy) -> None:
        self._strategy = weakref.ref(strategy)
        if self._measured is None:
            self.begin_profile()

    def end_step(self, strategy: Strategy) -> None:
        measured = self.end_profile()
        several = strategy.worker.world_size > 1
        if self._measured is not None:
            if not (strategy.reduce(int(measured is not None), "max") if several else measured):
                return
            measured = self._measured if measured is None else measured.scaled_others(self._measured)
        found = [one for one in strategy.gather(measured) if one is not None]
        if not found:
            raise OptionError(
                "budget needs a first step in which the layers run and get gradients, but none of them did: leave out "
                "those that the loss does not use"
            )
        self.choose(largest_of(found))

    def end_training(self) -> None:
        self.end_profile()

    def unapply(self) -> None:
        self.end_profile()
        super().unapply()

    def begin_profile(self, whole_step: bool = True) -> None:
        """Checkpoint and measure all candidates from now on.

        Args:
            whole_step: whether a step begins, so that what is saved outside of candidates can be measured too.
        """
        self.end_profile()
        model = self._model()
        assert model is not None
        self._profile = Profile(model, self._options.offload, bool(self._options.operators))
        for layer in self.layers:
            layer.profile, layer.on, layer.whole = self._profile, True, True
        if whole_step:
            self._profile.open()

    def end_profile(self) -> Measured | None:
        """Stop measuring; return what was measured."""
        profile, self._profile = self._profile, None
        for layer in self.layers:
            layer.profile = None
        return None if profile is None else profile.close()

    def choose(self, measured: Measured) -> None:
        """Choose the layers to checkpoint.

        Raises:
            OptionError: no choice fits into the budget.
        """
        self._measured = measured
        self.plan = choose(measured.costs, measured.other_bytes, self._options.budget, measured.tail_bytes)
        for layer in self.layers:
            layer.on, layer.whole = layer.name in self.plan.layers, layer.name not in self.plan.operators
            layer.watch = self._look if layer.name == measured.costs[0].name else None

    def _look(self, layer: CheckpointedForward, arguments: Any) -> None:
        """Look at the size of a micro-batch, when its first candidate runs."""
        if self._measured is None or self._profile is not None:
            return
        larger = size_of(take_tensors(arguments)[0], layer.layer) > self._measured.size
        strategy = None if self._strategy is None else self._strategy()
        if self._gathers and strategy is not None and strategy.worker.world_size > 1:
            larger = bool(strategy.reduce(int(larger), "max"))
        if larger:
            self.begin_profile(whole_step=False)
