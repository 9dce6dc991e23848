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
ROWS = "farandole.rows"
STAMPS = "farandole.stamps"
TIMES = "farandole.times"
"""Entries that a compiled step returns: its own loss; this worker's samples; the times when it asked for its batch and
got it; and, for each optimizer's update, the times when it had the loss (-1 if it is not known), its own gradients, and
their sum.
"""


class Records:
    """The callbacks of one distributed model, and the records for them.

    told: whether a compiled step returns its own loss, beside the epoch's.
    stamped: whether it returns when it asked for its batch, and when it had it.
    timed: whether it returns the times of its loss and of its gradients.
    """

    def __init__(self, strategy: TensorFlowStrategy) -> None:
        self.told = self.stamped = self.timed = False
        self._strategy = strategy
        self._nobody = Seam((), strategy.worker)
        self._seam = self._nobody
        self._loss: Any = None
        self._rows: Any = None

    @contextmanager
    def to(self, seam: Seam, model: Any) -> Iterator[None]:
        """Call these callbacks for the steps inside the block."""
        if seam and model.steps_per_execution > 1:
            raise OptionError(
                f"steps_per_execution={model.steps_per_execution}: farandole's callbacks watch each step, and "
                "Keras runs several as one. Compile the model with steps_per_execution=1, or leave the callbacks out"
            )
        known = self.told, self.stamped, self.timed
        self.told |= bool(seam)
        self.stamped |= seam.watches("data")
        self.timed |= any(seam.watches(phase) for phase in ("forward", "backward", "wait"))
        if known != (self.told, self.stamped, self.timed):
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
        samples = None if self._rows is None else int(self._rows.numpy())
        self._seam.end_step(after, Pending(lambda: float("nan") if loss is None else float(loss.numpy())), samples)

    def of(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a compiled training step that keeps its entries for the record."""

        def recorded(iterator: Any) -> Any:
            clock = Clock()
            logs = function(iterator)
            end = time.perf_counter()
            if not self.told:
                return logs
            logs = dict(logs)
            self._loss, self._rows = logs.pop(LOSS, None), logs.pop(ROWS, None)
            stamps, times = logs.pop(STAMPS, None), logs.pop(TIMES, None)
            start = clock.start
            if stamps is not None and self._seam.watches("data"):
                asked, start = clock.read(*stamps.numpy())
                self._seam.note("data", asked, start)
            if times is not None:
                start = self._note(clock, start, times)
            self._seam.note("update", start, end)
            return logs

        return recorded

    def _note(self, clock: Clock, start: float, times: tf.Tensor) -> float:
        """Report the phases of each update of a step that started to train at `start`; return the end of the last."""
        for loss, begin, done in sorted(times.numpy().tolist(), key=lambda row: row[1]):
            trained, reducing, reduced = clock.read(max(loss, 0.0), begin, done, since=start)
            if loss < 0:
                self._note_part("update", start, reducing)
            else:
                self._note_part("forward", start, trained)
                self._note_part("backward", trained, reducing)
            self._note_part("wait", reducing, reduced)
            start = reduced
        return start

    def _note_part(self, name: str, start: float, end: float) -> None:
        self._seam.note(name if self._seam.watches(name) else "update", start, end)


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
