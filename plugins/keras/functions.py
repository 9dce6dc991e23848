"""The functions by which Keras runs a model's compiled steps on an iterator."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ...adapters.errors import DataError
from ...adapters.worker import Worker
from .compat import FitModel
from .records import Records, stamped

Step = Callable[[Any], Any]


def make_functions_of(model: Any, worker: Worker, run: Callable[[Step, tuple[Any]], Any], records: Records) -> None:
    """Give a model functions that look a step's graph up once for each iterator, and say where data end too soon.

    Keras calls a `tf.function` at each step, which examines its arguments anew, and wraps the results in an optional
    that two more operations open: half a millisecond and more, in which the devices have nothing to do. What an
    iterator yields looks alike from its first batch to its last, so that its graph is found once.

    Args:
        run: runs a step on a batch, as `tf.distribute.Strategy.run` does.
        records: what is told of each training step.
    """
    fitted = FitModel(model)
    stock = fitted.make_function

    @functools.wraps(stock)
    def make_function(step: Step) -> Step:
        function: Step = stock(step)
        # In a loop, in Python or under XLA, Keras compiles a step otherwise, or not at all.
        if not (model.steps_per_execution > 1 or model.run_eagerly or model.jit_compile):
            on_batch = fitted.open_optionals(lambda batch: run(step, (batch,)))
            function = _looking_up_once(on_batch, function, records.stamped and step == model.train_step)
        if worker.world_size > 1:
            function = _telling_of_the_end(function)
        return records.of(function) if step == model.train_step else function

    fitted.make_function = make_function


def _looking_up_once(on_batch: Step, stock: Step, with_stamps: bool) -> Step:
    def next_of(iterator: Any) -> Any:
        return iterator.get_next()

    compiled = tf.function(
        stamped(next_of, on_batch) if with_stamps else lambda iterator: on_batch(next_of(iterator)),
        autograph=False,
        reduce_retracing=True,  # iterators whose sizes differ get the graphs that they would get from Keras
    )
    graph: Any = None
    latest: weakref.ref[Any] | None = None

    def function(iterator: Any) -> Any:
        nonlocal graph, latest
        if not isinstance(iterator, tf.data.Iterator) or tf.config.functions_run_eagerly():
            return stock(iterator)
        if latest is None or latest() is not iterator:
            graph = compiled.get_concrete_function(iterator)
            latest = weakref.ref(iterator)  # an iterator holds buffers and threads, which its epoch's end frees
        return graph(iterator)

    return function


def _telling_of_the_end(function: Step) -> Step:
    def telling(iterator: Any) -> Any:
        try:
            return function(iterator)
        except (tf.errors.OutOfRangeError, StopIteration):
            # Keras would end the epoch here, and other workers, who have more, would wait in their next step.
            raise DataError(
                "the data of unknown size ran out before the steps of an epoch that were asked for: repeat() them, or "
                "ask for as many steps as they have"
            ) from None

    return telling
