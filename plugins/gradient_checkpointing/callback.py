"""The callback, which hands the model to the part for its framework."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...adapters.callback import Callback, Run, StepRecord
from ...adapters.errors import OptionError
from ...adapters.progress import Progress
from .applied import Applied, Options
from .budget import Budget, check_budget
from .choice import Plan
from .selection import Layers

if TYPE_CHECKING:
    from ...adapters.strategy import Strategy

_FRAMEWORKS = {"keras": "tensorflow", "tensorflow": "tensorflow", "torch": "torch"}
"""The part for a model, by the packages of its base classes."""

_log = logging.getLogger("farandole")


class GradientCheckpointing(Callback):
    """Makes layers keep only their inputs for the backward pass, and compute their activations again in it.

    Losses and gradients do not change. Where no gradient is recorded, as in an evaluation, nothing is checkpointed.

    Args:
        layers: which ones may be: "blocks", the outermost repeated layers; names or patterns such as "blocks.*";
            classes; a function from a `Candidate` to a bool; or a list of these. Of nested ones, the outermost.
        budget: bytes of activations on each worker, as an int or text such as "4GiB", or a share (a float up to 1) of
            what they take without checkpointing. The layers that fit with the least recomputation are chosen, the same
            on all workers, and chosen again for larger batches. `None` checkpoints all of `layers`.
        operators: keep what some operators return, and recompute the rest: `True` keeps matrix products, convolutions
            and attention; a list names PyTorch's operators. With a budget each layer is kept, recomputed so, or
            recomputed whole, whatever fits with the least recomputation. PyTorch only.
        offload: keep inputs in host memory. On CUDA only.

    Raises:
        OptionError: an argument is invalid; when the model is prepared, if it has no such layers, or a layer cannot be
            checkpointed exactly; after the first step, if no choice fits into the budget.
    """

    def __init__(
        self,
        layers: Layers = "blocks",
        *,
        budget: Budget | None = None,
        operators: bool | Sequence[Any] = False,
        offload: bool = False,
    ) -> None:
        self._options = _options(layers, budget, operators, offload)
        self._applied: Applied | None = None
        self._strategy: Strategy | None = None  # while a training runs
        self._told: Plan | None = None

    @property
    def plan(self) -> Plan | None:
        """What was chosen last, the same on every worker; `None` until something was measured."""
        return None if self._applied is None else self._applied.plan

    def unapply(self) -> None:
        """Give the model back as it was; call it between two trainings."""
        if self._applied is not None:
            self._applied.unapply()
            self._applied = None

    def on_prepare(self, model: Any, run: Run) -> None:
        strategy = run.strategy
        self._applied = _part(strategy.capabilities.framework).apply(model, self._options, strategy)

    def on_begin(self, run: Run) -> None:
        self._strategy = run.strategy
        if self._applied is not None:
            self._applied.begin(run.strategy)

    def on_step_begin(self, progress: Progress) -> None:
        if self._applied is not None and self._strategy is not None:
            self._applied.begin_step(self._strategy)

    def on_step_end(self, step: StepRecord) -> None:
        if self._applied is None or self._strategy is None:
            return
        self._applied.end_step(self._strategy)
        if self._applied.plan is not self._told:
            self._told = self._applied.plan
            if self._strategy.worker.is_main:
                _log.info("gradient checkpointing:\n%s", self._told)

    def on_end(self, error: BaseException | None) -> None:
        if self._applied is not None:
            self._applied.end_training()
        self._strategy = None  # so that this can be copied


def plan(
    model: Any,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    layers: Layers = "blocks",
    *,
    budget: Budget | None = None,
    operators: bool | Sequence[Any] = False,
    offload: bool = False,
) -> Plan:
    """Measure a model on one micro-batch in this process, without training, and choose as `GradientCheckpointing` does.

    `print` the result for a table. Gradients, buffers and random generators are left as they were.

    Args:
        batch: a micro-batch, as `loss_fn` takes it.
        loss_fn: `loss_fn(model, batch)`, as in `Strategy.prepare`; `None`: a compiled Keras model has its own loss.

    Raises:
        OptionError: as `GradientCheckpointing`; or the model is of no framework that is supported.
    """
    options = _options(layers, budget, operators, offload)
    packages = {base.__module__.partition(".")[0] for base in type(model).__mro__}
    for package, framework in _FRAMEWORKS.items():
        if package in packages:
            chosen: Plan = _part(framework).plan(model, batch, loss_fn, options)
            return chosen
    raise OptionError(f"plan takes a torch.nn.Module or a keras.Model, not a {type(model).__name__}")


def _options(layers: Layers, budget: Budget | None, operators: bool | Sequence[Any], offload: bool) -> Options:
    check_budget(budget)
    return Options(layers, budget, operators, offload)


def _part(framework: str) -> Any:
    """Import a framework's part.

    It has `apply(model, options, strategy)`, which returns an `Applied`, and `plan(model, batch, loss_fn, options)`.
    """
    return importlib.import_module(f".{framework}", __package__)
