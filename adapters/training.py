"""A training: a model, its optimizer and its loss on an engine, as `Strategy.prepare` makes it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, SupportsFloat

from .batches import Batch, Batches, Position
from .callback import Callback, Run
from .errors import OptionError, StrategyStateError
from .progress import Progress
from .seam import Seam

if TYPE_CHECKING:
    from .checkpoint.manifest import Manifest
    from .strategy import Strategy


@dataclass(frozen=True)
class StepOptions:
    """The arguments of `Strategy.prepare` beside model, optimizer and loss; see there.

    grad_norm: whether to measure the norm of the gradient; always true with clipping.
    """

    scheduler: Any = None
    accumulate: int = 1
    clip_norm: float | None = None
    grad_norm: bool = False
    callbacks: tuple[Callback, ...] = ()


class Training(ABC):
    """A model, its optimizer and its loss on one engine; made by `Strategy.prepare`.

    model: the model as the user made it, on the strategy's device; its parameters are the trained ones.
    optimizer: an optimizer of the framework whose hyperparameters reach the engine.
    extras: the extras of the last loaded checkpoint.
    attempt: how often its run has begun again from a checkpoint.
    """

    model: Any
    optimizer: Any

    def __init__(self, strategy: Strategy, options: StepOptions) -> None:
        self.extras: dict[str, Any] = {}
        self.attempt = 0
        self._strategy = strategy
        self._options = options
        self._seam = Seam(options.callbacks, strategy.worker)
        self._seam.refuse_differences(strategy)
        strategy.end_callbacks_with(self._seam)
        self._position = Position()
        self._grad_norm: SupportsFloat | None = None

    @property
    def progress(self) -> Progress:
        """The position after the last step or the last `load`; pass it to `save`."""
        return self._position.progress

    @property
    def grad_norm(self) -> SupportsFloat:
        """The L2 norm of the last step's whole gradient before clipping; the same number on every worker.

        Reading the number waits for it, as with the loss.

        Raises:
            OptionError: `prepare` was given neither `clip_norm` nor `grad_norm=True`.
            StrategyStateError: there was no step yet.
        """
        if not self._options.grad_norm:
            raise OptionError("training.grad_norm is measured only if prepare() is given clip_norm or grad_norm=True")
        if self._grad_norm is None:
            raise StrategyStateError("training.grad_norm belongs to the last step, and there was none yet")
        return self._grad_norm

    def step(self, batch: Batch) -> SupportsFloat:
        """Train on one global batch and return its mean loss, the same number on every worker.

        Only reading the number waits for it, so an unread loss costs no time.
        """
        try:
            if self._seam:
                self._seam.begin_step(batch.progress, self._run())
            with self._strategy.noticing_lost_workers():
                loss = self._step(batch)
        except BaseException:
            self._seam.drop_step()
            raise
        self._position.progress = batch.progress
        if self._seam:
            weight = sum(batch.weights)
            samples, tokens = (int(weight), None) if batch.samples is None else (batch.samples, weight)
            self._seam.end_step(batch.progress, loss, samples, tokens, self._grad_norm)
        return loss

    def log(self, name: str, value: SupportsFloat) -> None:
        """Add a number to the record of the next step, for callbacks."""
        self._seam.log(name, value)

    def callbacks_state(self) -> dict[str, dict[str, Any]]:
        """Return the callbacks' states for a checkpoint, by their names."""
        return self._seam.state()

    def restore(self, manifest: Manifest) -> Progress:
        """Restore extras and callbacks' states from a checkpoint whose model and optimizer were loaded."""
        self.extras = manifest.extras
        self.attempt = manifest.attempt + 1
        self._seam.load_state(manifest.callbacks)
        return manifest.progress

    @abstractmethod
    def _step(self, batch: Batch) -> SupportsFloat: ...

    def _run(self) -> Run:
        return Run(self._strategy, "loop", self._position.progress)

    @abstractmethod
    def batches(
        self,
        dataset: Any,
        global_batch_size: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        start: Progress | None = None,
        shuffle: bool = True,
        weight: Callable[[Any], SupportsFloat] | None = None,
        **loader_options: Any,
    ) -> Batches:
        """Return an iterator over this worker's shares of the global batches up to the end of epoch `epochs` - 1.

        Each sample of an epoch comes once, on one worker. `order.GlobalOrder` defines its step, the same at any world
        size.

        Args:
            start: the first step. By default the first of all, and after `load` the next one after the checkpoint. A
                program that makes several calls makes the same ones when it is started again, and completed calls yield
                nothing. One that lies before the position, for example of a second phase, counts as further too.
            weight: `weight(micro_batch)` returns a micro-batch's weight in the mean, for example its number of tokens;
                by default its number of samples.

        Returns:
            An iterator whose `len` is the number of batches that remain.
        """

    @abstractmethod
    def evaluate(self, dataset: Any, fn: Callable[[Any, Any], Any], batch_size: int, **loader_options: Any) -> Any:
        """Return the mean over all samples of what `fn(model, micro_batch)` returns, the same on every worker.

        The model is in evaluation mode, without gradients. All workers call it with the same dataset, and make the same
        number of forward passes, because engines that shard parameters need that. Each sample counts once.

        Args:
            dataset: as `batches` takes it.
            fn: returns means over the samples of a micro-batch: a scalar, or a nested structure of scalars.
            batch_size: samples of a global batch.

        Returns:
            A float, or the structure with a float for each scalar.

        Raises:
            DataError: the dataset is empty, or has no length.
            OptionError: the batch is smaller than the number of workers, or `fn` returned something else.
        """

    @abstractmethod
    def weights(self) -> Iterator[tuple[str, Any]]:
        """Yield the name and the value of each of the model's parameters and persistent buffers, whole, on the CPU.

        All workers iterate together, to the end: an engine that shards gathers one parameter at a time.
        """

    @abstractmethod
    def save(
        self,
        path: str | PathLike[str],
        progress: Progress,
        extras: Mapping[str, Any] | None = None,
        *,
        wait: bool = True,
        keep: int | None = None,
    ) -> None:
        """Write everything that `load` needs, as one commit: a crash leaves the previous checkpoint.

        All workers call it, and each writes a part.

        Args:
            path: a folder, local or of fsspec ("s3://bucket/run/7"); all workers see the same one.
            extras: any JSON object of the user's own.
            wait: whether it is committed on return. Otherwise each worker copies what it writes, and writes while
                training continues; the next save or load raises a failure. A worker that leaves waits for it, up to 15
                s and without the others. A failure is then raised if the worker succeeded, else printed to stderr.
            keep: how many whole checkpoints to keep beside `path`, this one included; older ones are removed. `None`
                keeps all.

        Raises:
            CheckpointError: this save, or an earlier one with `wait=False`, failed; raised on every worker, with the
                reason.
        """

    @abstractmethod
    def load(self, path: str | PathLike[str]) -> Progress:
        """Load model, optimizer, scheduler and extras from `path`, and return its position.

        All workers call it. Nothing changes before all files are checked. `latest` finds a path.

        Raises:
            CheckpointError: it is missing, unfinished, damaged, or does not fit this model and optimizer; raised on
                every worker.
        """
