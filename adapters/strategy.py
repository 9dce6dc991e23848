"""The one interface over all engines: a strategy, and the training that it prepares.

A public method checks state and arguments; then a private hook does the engine's part.
"""

from __future__ import annotations

import contextlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

from . import entry
from .callback import Callback
from .capabilities import Capabilities
from .checkpoint import under_way
from .compat import imports_script_again
from .errors import CallbackError, CheckpointError, OptionError, StrategyStateError, WorkerLostError
from .failure_report import report_failure, withdraw_report
from .launch.detect import detect_launch
from .launch.variables import Launch
from .leaving import has_succeeded
from .lost_worker import NoticesLostWorkers, shorten_traceback
from .seam import Seam
from .training import StepOptions, Training
from .worker import Worker

ReduceOp = Literal["mean", "sum", "max", "min"]
REDUCE_OPS: tuple[ReduceOp, ...] = ("mean", "sum", "max", "min")

_log = logging.getLogger("farandole")


class Strategy(NoticesLostWorkers):
    """One engine under the launcher that started this process. It is used once, as a context manager.

    One strategy is open at a time in a process; another may follow it.

    name, options: as `create_strategy` was given them, with the options that the name stands for.
    """

    name: str = ""
    options: Mapping[str, Any] = MappingProxyType({})
    capabilities: Capabilities

    def __init__(self) -> None:
        self._launch = detect_launch()
        self._state: Literal["new", "joined", "left"] = "new"
        self._seams: list[Seam] = []

    @property
    def launch(self) -> Launch:
        """The launcher's description of this process."""
        return self._launch

    @property
    def worker(self) -> Worker:
        """This process's rank and place in the job."""
        return self._launch.worker

    @property
    def is_open(self) -> bool:
        """Whether the strategy was entered and not left."""
        return self._state == "joined"

    @property
    @abstractmethod
    def device(self) -> Any:
        """The device that this worker trains on, in the framework's own type."""

    def __enter__(self) -> Self:
        _refuse_in_a_script_imported_again()
        if self._state != "new":
            raise StrategyStateError(f"strategy {self.name!r} was used before: create a new one for each `with` block")
        entry.begin(self)
        try:
            self._join()
        except BaseException:
            self._abandon()
            raise
        self._state = "joined"
        worker = self.worker
        withdraw_report(worker)
        _log.info(
            "%s: worker %d of %d on %s, started by %s",
            self.name,
            worker.rank,
            worker.world_size,
            self.device,
            self._launch.launcher,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lost = self._as_lost_worker(error)
        failure = lost or error
        if not has_succeeded(failure):
            assert failure is not None
            try:
                if isinstance(failure, WorkerLostError):
                    shorten_traceback(failure)
                report_failure(failure, self.worker)
                self._end_callbacks(failure)
            finally:  # Ctrl-C may come in between
                self._leave_after_failure()
            if lost is not None:
                raise lost from None
            return
        try:
            self._end_callbacks(None)
        except BaseException as raised:
            try:
                report_failure(raised, self.worker)
            finally:
                self._leave_after_failure()
            raise
        self._leave_after_success()

    def _end_callbacks(self, error: BaseException | None) -> None:
        seams, self._seams = self._seams, []
        raised: CallbackError | None = None
        for seam in seams:
            try:
                seam.end(error if raised is None else raised)
            except CallbackError as another:
                raised = another
        if raised is not None:
            raise raised

    def _leave_after_failure(self) -> None:
        try:
            under_way.finish(succeeded=False)
        finally:
            self._abandon()

    def _leave_after_success(self) -> None:
        try:
            try:
                under_way.finish(succeeded=True)
            except CheckpointError as lost:
                # The other workers' saves may be whole, and they wait for this one.
                self._leave_with_others(lost)
                raise
            except BaseException:  # Ctrl-C
                self._abandon()
                raise
            self._leave_with_others()
        except BaseException as error:
            report_failure(error, self.worker)
            raise

    def _leave_with_others(self, lost: CheckpointError | None = None) -> None:
        try:
            with self.noticing_lost_workers():
                self._leave(failed=False)
        except BaseException:
            if lost is not None:  # this exception hides it
                under_way.say_lost([lost])
            self._abandon()
            raise
        self._state = "left"
        entry.end(self)

    def _abandon(self) -> None:
        """Leave after a failure, perhaps while joining or leaving."""
        try:
            self._leave(failed=True)
        finally:
            self._state = "left"
            entry.end(self)

    def end_callbacks_with(self, seam: Seam) -> None:
        """Call a training's `on_end` callbacks when this strategy is left."""
        if seam:
            self._seams.append(seam)

    def adopt_running_job(self) -> None:
        """Make the collectives work in a job that a frontend itself joins and leaves."""
        self._state = "joined"

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Build the model and its optimizer inside: some engines need to create the variables."""
        self._require_joined("scope")
        with self._scope():
            yield

    def prepare(
        self,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        scheduler: Any = None,
        accumulate: int = 1,
        clip_norm: float | None = None,
        grad_norm: bool = False,
        callbacks: Sequence[Callback] = (),
    ) -> Training:
        """Hand a model and its optimizer to the engine; every worker starts from rank 0's weights.

        Args:
            loss_fn: `loss_fn(model, micro_batch)` returns the mean loss of a micro-batch, a scalar.
            scheduler: a learning-rate scheduler of `optimizer`, advanced once per step. The rate is never scaled.
            accumulate: micro-batches that a worker splits its share of a global batch into; the curve does not change.
            clip_norm: largest L2 norm of the whole reduced gradient; `None` does not clip.
            grad_norm: whether to measure `Training.grad_norm` without clipping; it costs a reduction on engines that
                shard gradients.
            callbacks: what plugs into this training, called in this order; the same on every worker.

        Raises:
            OptionError: an argument is invalid, or this engine does not support it.
        """
        self._require_joined("prepare")
        if accumulate < 1:
            raise OptionError(f"accumulate={accumulate} must be at least 1")
        if clip_norm is not None and not clip_norm > 0:
            raise OptionError(f"clip_norm={clip_norm} must be positive; None does not clip")
        with self.noticing_lost_workers():
            measured = grad_norm or clip_norm is not None
            options = StepOptions(scheduler, accumulate, clip_norm, measured, tuple(callbacks))
            return self._prepare(model, optimizer, loss_fn, options)

    def reduce(self, value: Any, op: ReduceOp = "mean") -> Any:
        """Combine `value`, a tensor, array, number or nested structure of these, over all workers, leaf by leaf.

        Integers stay exact under sum, max and min: their sum is int64, their mean a float. All workers call it with the
        same structure.
        """
        self._require_joined("reduce")
        if op not in REDUCE_OPS:
            raise OptionError(f"cannot reduce with {op!r}: use one of {', '.join(REDUCE_OPS)}")
        with self.noticing_lost_workers():
            return self._reduce(value, op)

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's `value` (anything that pickles; shapes may differ), in rank order, on every worker."""
        self._require_joined("gather")
        with self.noticing_lost_workers():
            return self._gather(value)

    def broadcast(self, value: Any, root: int = 0) -> Any:
        """Return the `value` of worker `root` (anything that pickles) on every worker; the others' are ignored."""
        self._require_joined("broadcast")
        if not 0 <= root < self.worker.world_size:
            raise OptionError(f"there is no worker {root} among {self.worker.world_size} to broadcast from")
        with self.noticing_lost_workers():
            return self._broadcast(value, root)

    def barrier(self) -> None:
        """Return once every worker has called it."""
        self._require_joined("barrier")
        with self.noticing_lost_workers():
            self._barrier()

    def _require_joined(self, method: str) -> None:
        if self._state != "joined":
            raise StrategyStateError(f"{method}() works inside `with strategy:` only; this one is {self._state}")

    @abstractmethod
    def _join(self) -> None:
        """Join the job that the launcher describes."""

    @abstractmethod
    def _leave(self, failed: bool) -> None:
        """Leave the job; after a failure, do not wait for other workers, and expect that joining was incomplete."""

    @abstractmethod
    def _scope(self) -> contextlib.AbstractContextManager[None]: ...

    @abstractmethod
    def _prepare(
        self,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        options: StepOptions,
    ) -> Training: ...

    @abstractmethod
    def _reduce(self, value: Any, op: ReduceOp) -> Any: ...

    @abstractmethod
    def _gather(self, value: Any) -> list[Any]: ...

    @abstractmethod
    def _broadcast(self, value: Any, root: int) -> Any: ...

    @abstractmethod
    def _barrier(self) -> None: ...


def _refuse_in_a_script_imported_again() -> None:
    """Refuse to join in a process that multiprocessing spawned: it imports the script first, and would join as a
    worker.

    Raises:
        StrategyStateError: this process is importing the script.
    """
    if imports_script_again():
        raise StrategyStateError(
            "this script enters a strategy as soon as it is imported, and a process that multiprocessing started (to "
            "load data, for example) imports it: put the script's work into a function, called under "
            "`if __name__ == '__main__':`"
        )
