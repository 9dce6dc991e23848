"""The checkpointing of one Keras model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from ....adapters.errors import OptionError
from ....adapters.strategy import Strategy
from ....adapters.tensorflow.library import check_model, compiled_loss
from ....adapters.tensorflow.planning import Loss, Planner, plan_with
from ..applied import Applied, Options
from ..choice import Plan, choose
from ..selection import select
from .layers import candidates, layers_by_path
from .measure import Measured, measure
from .recompute import CheckpointedLayer
from .refusals import refuse_layer, refuse_rematerialized


def apply(model: Any, options: Options, strategy: Strategy) -> KerasApplied:
    """Checkpoint layers of a model, at the latest when it is built.

    Raises:
        OptionError: an option is not TensorFlow's, or names no layer.
    """
    _check(model, options)
    return KerasApplied(model, options)


def plan(model: Any, batch: Any, loss_fn: Callable[[Any, Any], Any] | None, options: Options) -> Plan:
    """Measure a model on one micro-batch in this process, and choose; the model stays as it is.

    Args:
        batch: as `loss_fn` takes it; without one, `(x, y)` or `(x, y, sample_weight)`.
    """
    _check(model, options)
    loss_fn = loss_fn or compiled_loss
    batch = tf.nest.map_structure(tf.convert_to_tensor, batch)
    if not all(layer.built for layer in layers_by_path(model).values()):
        tf.function(loss_fn, autograph=False).get_concrete_function(model, batch)  # builds them
    layers = _selected(model, options)
    try:
        return _choice(measure(model, layers, batch, loss_fn, timed=True), options)
    finally:
        for layer in layers:
            layer.undo()


class KerasApplied(Applied, Planner):
    """The checkpointing of one Keras model."""

    def __init__(self, model: Any, options: Options) -> None:
        self._model = model
        self._options = options
        self._layers: list[CheckpointedLayer] = []
        self._strategy: Strategy | None = None  # while a training runs
        self._planned = 0  # the size of the batch that was planned for
        if all(layer.built for layer in layers_by_path(model).values()):
            self._select()

    def begin(self, strategy: Strategy) -> None:
        if tf.config.functions_run_eagerly() or self._model.run_eagerly:
            raise OptionError(
                "gradient checkpointing is for compiled steps: compile the model with run_eagerly=False, and leave "
                "tf.config.run_functions_eagerly(True) out"
            )
        if not self._layers:
            self._select()
        self._strategy = strategy

    def end_training(self) -> None:
        self._strategy = None

    def before_step(self, batch: Any, loss_fn: Loss) -> None:
        """Plan for the first batch, and for larger ones; rank 0 does so for all."""
        size = sum(_size_of(leaf) for leaf in tf.nest.flatten(batch) if leaf is not None)
        if size <= self._planned:
            return
        assert self._strategy is not None, "before_step comes after begin"
        self.plan = self._plan_for_all(self._strategy, batch, loss_fn, size)
        self._planned = size
        chosen = set(self.plan.layers)
        for layer in self._layers:
            layer.active = layer.name in chosen
        self.generation += 1

    def unapply(self) -> None:
        plan_with(self._model, None)
        for layer in self._layers:
            layer.undo()
        self._layers = []
        self._model.train_function = None  # so that fit compiles it again

    def _select(self) -> None:
        self._layers = _selected(self._model, self._options)
        if self._options.budget is not None:
            plan_with(self._model, self)

    def _plan_for_all(self, strategy: Strategy, batch: Any, loss_fn: Loss, size: int) -> Plan:
        names = [layer.name for layer in self._layers]
        found: tuple[Plan | OptionError, list[str]] | None = None
        if strategy.worker.is_main:
            try:
                found = _choice(self._measured(batch, loss_fn, size), self._options), names
            except OptionError as error:
                found = error, names
        sent: tuple[Plan | OptionError, list[str]] = strategy.broadcast(found)
        chosen, names = sent
        if isinstance(chosen, OptionError):
            raise chosen
        for layer, name in zip(self._layers, names, strict=True):
            layer.name = name  # Keras numbers layers in each process
        return chosen

    def _measured(self, batch: Any, loss_fn: Loss, size: int) -> Measured:
        """Measure; layers' times only at first, as they grow with the batch."""
        found = measure(self._model, self._layers, batch, loss_fn, timed=self.plan is None)
        if self.plan is None:
            return found
        times = {cost.name: cost.seconds * size / self._planned for cost in self.plan.costs}
        costs = [dataclasses.replace(cost, seconds=times.get(cost.name, 0.0)) for cost in found.costs]
        return dataclasses.replace(found, costs=costs)


def _size_of(leaf: Any) -> int:
    shape = tf.TensorShape(leaf.shape)
    if not shape.is_fully_defined():
        raise OptionError(
            f"a budget needs batches of known shapes, but there are inputs of {shape}: give all samples one shape, and "
            "fit arrays, or a tf.data.Dataset that is batched by a number; or leave budget out"
        )
    return math.prod(shape.as_list())


def _check(model: Any, options: Options) -> None:
    check_model(model)
    for name in ("operators", "offload"):
        if getattr(options, name):
            raise OptionError(f"{name} is for PyTorch only: leave it out")


def _selected(model: Any, options: Options) -> list[CheckpointedLayer]:
    layers = layers_by_path(model)
    refuse_rematerialized(layers.items())
    chosen = select(options.layers, candidates(layers))
    for name in chosen:
        refuse_layer(name, layers[name])
    return [CheckpointedLayer(layers[name], name) for name in chosen]


def _choice(measured: Measured, options: Options) -> Plan:
    return choose(measured.costs, measured.other_bytes, options.budget, measured.tail_bytes)
