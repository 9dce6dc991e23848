"""Farandole's callbacks for Lightning's Trainer, on our strategies and on Lightning's own."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

from ...adapters.callback import Callback
from ...adapters.seam import Seam, check_callback
from .. import gradient_checkpointing, metrics
from .package import trainer_part
from .records import Records

_Callback: Any = trainer_part("callbacks").Callback


class LightningCallback(_Callback):  # type: ignore[misc]
    """A farandole callback for a Trainer: `Trainer(callbacks=[LightningCallback(Waits()), ...])`.

    It sees each `fit`. A record is of one step of the optimizer; with manual optimization it is of one batch, and its
    loss is the sum of the losses given to `manual_backward`.

    On farandole's strategies the loss is that over all workers and micro-batches, the same number on every worker. One
    worker may read it alone. On Lightning's own strategies it is this worker's loss, and there is no phase "data",
    because Lightning has no hooks for it; `run.strategy` has only the workers and the collectives.

    States are stored in Lightning's checkpoints under the same names as in farandole's. In Fabric you write the loop,
    and it has none of these hooks.

    Raises:
        OptionError: it is not a farandole callback, or watches an unknown phase.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Create a class for each kind of callback: Lightning replaces a callback by another of the same class."""
        if cls is LightningCallback and arguments:
            kind = type(arguments[0])
            cls = _KINDS.setdefault(kind, type(f"Lightning{kind.__name__}", (cls,), {}))
        made: Self = super().__new__(cls)
        return made

    def __init__(self, callback: Callback) -> None:
        super().__init__()
        check_callback(callback)
        self.callback = callback
        self._records: Records | None = None  # of the running fit
        self._seam: Seam | None = None
        self._prepared: weakref.ref[Any] | None = None

    def __reduce__(self) -> Any:
        """Copy the wrapped callback: the class may have been created here, and cannot be pickled."""
        return (LightningCallback, (self.callback,)) if type(self) in _KINDS.values() else super().__reduce__()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_records": None, "_seam": None, "_prepared": None}

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        plugged = [callback for callback in trainer.callbacks if isinstance(callback, LightningCallback)]
        self._records = None
        if stage == "fit":
            self._seam = None  # of another Trainer, in which this callback may not be the first
        if stage != "fit" or plugged[0] is not self:
            return  # the first calls all of them
        self._records = Records(trainer, [callback.callback for callback in plugged])
        self._seam = self._records.seam  # kept: a checkpoint may be saved after the fit
        if self._prepared is None or self._prepared() is not pl_module:
            self._prepared = weakref.ref(pl_module)
            self._records.prepare(pl_module)

    # A step.

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if self._records is not None:
            self._records.begin_epoch()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._records is not None:
            self._records.begin_batch(batch_idx)

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._tell("on_before_zero_grad")

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        self._tell("on_before_backward")

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self._tell("on_after_backward")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self._tell("on_before_optimizer_step")

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._records is not None:
            self._records.end_batch(batch_idx, outputs)

    def _tell(self, hook: str) -> None:
        if self._records is not None:
            self._records.hook(hook)

    # Checkpoints.

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._seam is not None:
            states = self._seam.state()
            if states:
                checkpoint.setdefault("farandole", {})["callbacks"] = states

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._seam is not None:
            self._seam.load_state(checkpoint.get("farandole", {}).get("callbacks", {}))

    # The end.

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._end(None)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end(exception)

    def _end(self, error: BaseException | None) -> None:
        records, self._records = self._records, None
        if records is not None:
            records.end(error)


_KINDS: dict[type, type[LightningCallback]] = {}


class WorkerMetrics(LightningCallback):
    """Measures each worker's steps, as `farandole.plugins.metrics.WorkerMetrics` does, for a Trainer.

    It has the same arguments. On Lightning's own strategies, waiting and data are not measured.
    """

    def __init__(
        self, folder: str | PathLike[str] | None = None, *, every: int = 10, sinks: Sequence[metrics.Sink | str] = ()
    ) -> None:
        super().__init__(metrics.WorkerMetrics(folder, every=every, sinks=sinks))

    @property
    def folder(self) -> Path | None:
        """The run's folder, as in `metrics.WorkerMetrics`."""
        assert isinstance(self.callback, metrics.WorkerMetrics)
        return self.callback.folder


class GradientCheckpointing(LightningCallback):
    """Checkpoints a module's layers, as `farandole.plugins.gradient_checkpointing.GradientCheckpointing` does.

    It has the same arguments. It works on farandole's strategies and on Lightning's own.
    """

    def __init__(
        self,
        layers: gradient_checkpointing.Layers = "blocks",
        *,
        budget: gradient_checkpointing.Budget | None = None,
        operators: bool | Sequence[Any] = False,
        offload: bool = False,
    ) -> None:
        super().__init__(
            gradient_checkpointing.GradientCheckpointing(layers, budget=budget, operators=operators, offload=offload)
        )

    @property
    def plan(self) -> gradient_checkpointing.Plan | None:
        """What was chosen last, as in `gradient_checkpointing.GradientCheckpointing`."""
        assert isinstance(self.callback, gradient_checkpointing.GradientCheckpointing)
        return self.callback.plan

    def unapply(self) -> None:
        """Give the module back as it was; call it between two fits."""
        assert isinstance(self.callback, gradient_checkpointing.GradientCheckpointing)
        self.callback.unapply()
        self._prepared = None
