"""The records of a `fit`'s steps for farandole's callbacks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from ...adapters.callback import Callback, Run
from ...adapters.errors import OptionError
from ...adapters.pending import Pending
from ...adapters.progress import Progress
from ...adapters.seam import Seam, changes_the_model
from ...adapters.tensorflow.stamps import Clock, stamp_after
from ...adapters.tensorflow.strategy import TensorFlowStrategy

LOSS = "farandole.loss"
STAMPS = "farandole.stamps"
WAITS = "farandole.waits"
"""Entries that a compiled step returns: its own loss; the times when it asked for its batch and got it; and, for each
reduction, the times when it had its own gradients and their sum.
"""


class Records:
    """The callbacks of one distributed model, and the records for them.

    told: whether a compiled step returns its own loss, beside the epoch's.
    stamped: whether it returns when it asked for its batch, and when it had it.
    waits: whether it returns when it began to wait for the other workers, and when it had their gradients.
    """

    def __init__(self, strategy: TensorFlowStrategy) -> None:
        self.told = self.stamped = self.waits = False
        self._strategy = strategy
        self._nobody = Seam((), strategy.worker)
        self._seam = self._nobody
        self._loss: Any = None

    @contextmanager
    def to(self, seam: Seam, model: Any) -> Iterator[None]:
        """Call these callbacks for the steps inside the block."""
        if seam and model.steps_per_execution > 1:
            raise OptionError(
                f"steps_per_execution={model.steps_per_execution}: farandole's callbacks watch each step, and "
                "Keras runs several as one. Compile the model with steps_per_execution=1, or leave the callbacks out"
            )
        known = self.told, self.stamped, self.waits
        self.told |= bool(seam)
        self.stamped |= seam.watches("data")
        self.waits |= seam.watches("wait")
        if known != (self.told, self.stamped, self.waits):
            model.train_function = None  # the compiled function does not return it
        self._seam = seam
        try:
            yield
        except BaseException as error:
            seam.end(error)
            raise
        finally:
            self._seam = self._nobody
        seam.end(None)

    def begin_step(self, before: Progress, after: Progress) -> None:
        """Call before a step, with the positions before and after it."""
        self._seam.begin_step(after, Run(self._strategy, "keras", before))

    def end_step(self, after: Progress) -> None:
        """Call after a step."""
        loss = self._loss
        self._seam.end_step(after, Pending(lambda: float("nan") if loss is None else float(loss.numpy())))

    def of(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a compiled training step that keeps its entries for the record."""

        def recorded(iterator: Any) -> Any:
            clock = Clock()
            logs = function(iterator)
            end = time.perf_counter()
            if not self.told:
                return logs
            logs = dict(logs)
            self._loss = logs.pop(LOSS, None)
            stamps, waits = logs.pop(STAMPS, None), logs.pop(WAITS, None)
            start = clock.start
            if stamps is not None and self._seam.watches("data"):
                ((asked, fetched),) = clock.spans(stamps[None])
                self._seam.note("data", asked, fetched)
                start = fetched
            for begin, done in sorted(clock.spans(waits)) if waits is not None and self._seam.watches("wait") else ():
                self._seam.note("update", start, begin)
                self._seam.note("wait", begin, done)
                start = done
            self._seam.note("update", start, end)
            return logs

        return recorded


class StepHooks(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells a model's `Records` when its steps begin and end."""

    def __init__(self, records: Records) -> None:
        super().__init__()
        self._records = records
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._records.begin_step(Progress(self._epoch, batch), self._after(batch))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._records.end_step(self._after(batch))

    def _after(self, batch: int) -> Progress:
        done = batch + 1
        return Progress(self._epoch + 1) if done == self.params.get("steps") else Progress(self._epoch, done)


def parted(callbacks: Any) -> tuple[list[Any], list[Callback]]:
    """Separate a user's callbacks into Keras's and ours."""
    given = keras.tree.flatten(callbacks) if callbacks else []
    ours = [callback for callback in given if isinstance(callback, Callback)]
    return [callback for callback in given if not isinstance(callback, Callback)], ours


def refuse_changing(callbacks: list[Callback]) -> None:
    """Raise `OptionError` for a callback that changes the model, which is distributed already."""
    for callback in callbacks:
        if changes_the_model(callback):
            name = type(callback).__name__
            raise OptionError(
                f"{name} changes the model before it is distributed (on_prepare), which is too late in fit: pass it to "
                f"distribute(model, strategy, callbacks=[{name}(...)]) instead"
            )


def stamped(batch_of: Callable[[Any], Any], run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a step on an iterator, to be compiled, that also returns when it waited for its batch."""

    def step(iterator: Any) -> Any:
        asked = tf.timestamp()
        with tf.control_dependencies([asked]):
            batch = batch_of(iterator)
        leaves = [leaf for leaf in tf.nest.flatten(batch, expand_composites=True) if tf.is_tensor(leaf)]
        fetched = stamp_after(leaves)  # before the step: TensorFlow keeps the order of stateful operations
        return {**run(batch), STAMPS: tf.stack([asked, fetched])}

    return step
