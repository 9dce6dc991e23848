"""The functions with which Keras runs a model's compiled steps on an iterator."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ...adapters.errors import DataError
from ...adapters.tensorflow.library import compiled_loss
from ...adapters.tensorflow.planning import planner_of
from ...adapters.worker import Worker
from .compat import FitModel
from .distribution import Distribution
from .records import stamped

Step = Callable[[Any], Any]


def make_functions_of(model: Any, worker: Worker, distribution: Distribution) -> None:
    """Give a model functions that look up a step's graph once per iterator, and report data that end too soon.

    Keras calls a `tf.function` at each step, which examines its arguments again, and wraps the results in an optional
    that two more operations unwrap: half a millisecond or more, in which the devices are idle. All batches of an
    iterator have the same structure, so its graph is looked up once.
    """
    fitted = FitModel(model)
    stock = fitted.make_function
    records = distribution.records

    def made(step: Step) -> Step:
        function: Step = stock(step)
        # In a loop, eagerly or under XLA, Keras compiles a step differently, or not at all.
        if not (model.steps_per_execution > 1 or model.run_eagerly or model.jit_compile):
            on_batch = fitted.open_optionals(lambda batch: distribution.run(step, (batch,)))
            function = _looking_up_once(on_batch, function, records.stamped and step == model.train_step)
        return _telling_of_the_end(function) if worker.world_size > 1 else function

    @functools.wraps(stock)
    def make_function(step: Step) -> Step:
        if step != model.train_step:
            return made(step)
        return records.of(_planned(model, distribution, lambda: made(step)))

    fitted.make_function = make_function


def _planned(model: Any, distribution: Distribution, make: Callable[[], Step]) -> Step:
    """Return a training step that is made again when its model's planner asks for that."""
    made, generation = make(), 0

    def step(iterator: Any) -> Any:
        nonlocal made, generation
        planner = planner_of(model)
        if planner is not None:
            planner.before_step(distribution.share_of(iterator), compiled_loss)
            if planner.generation != generation:
                made, generation = make(), planner.generation
        return made(iterator)

    return step


def _looking_up_once(on_batch: Step, stock: Step, with_stamps: bool) -> Step:
    def next_of(iterator: Any) -> Any:
        return iterator.get_next()

    compiled = tf.function(
        stamped(next_of, on_batch) if with_stamps else lambda iterator: on_batch(next_of(iterator)),
        autograph=False,
        reduce_retracing=True,  # iterators of other sizes get the same graphs as in Keras
    )
    graph: Any = None
    latest: weakref.ref[Any] | None = None

    def function(iterator: Any) -> Any:
        nonlocal graph, latest
        if not isinstance(iterator, tf.data.Iterator) or tf.config.functions_run_eagerly():
            return stock(iterator)
        if latest is None or latest() is not iterator:
            graph = compiled.get_concrete_function(iterator)
            latest = weakref.ref(iterator)  # an iterator holds buffers and threads until the end of its epoch
        return graph(iterator)

    return function


def _telling_of_the_end(function: Step) -> Step:
    def telling(iterator: Any) -> Any:
        try:
            return function(iterator)
        except (tf.errors.OutOfRangeError, StopIteration):
            # Keras would end the epoch here, and workers with more data would wait in their next step.
            raise DataError(
                "the data of unknown size ran out before the steps of the epoch were done: repeat() them, or pass a "
                "smaller steps_per_epoch"
            ) from None

    return telling
