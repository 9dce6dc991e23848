"""What Keras gives a layer's call beside its arguments, so that it can be called again later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from ....adapters.tensorflow.compat import VariableView

Values = Sequence[tuple[Any, tf.Tensor]]
"""Keras variables, each with a value."""


class Recording(keras.StatelessScope):  # type: ignore[misc]
    """Inside, Keras variables have the given values, and stay as they are: what is assigned to them is recorded.

    A recomputation so draws the random numbers of the first computation, from its seeds, and moves no statistics.

    assigned: the variables, and their last values.
    losses: what layers passed to `add_loss`.
    """

    def __init__(self, values: Values) -> None:
        super().__init__(state_mapping=list(values), collect_losses=True, initialize_variables=False)
        self._given = {id(variable) for variable, _ in values}
        self._assigned: dict[int, tuple[Any, tf.Tensor]] = {}

    def add_update(self, update: tuple[Any, tf.Tensor]) -> None:
        super().add_update(update)
        self._assigned[id(update[0])] = update

    @property
    def assigned(self) -> list[tuple[Any, tf.Tensor]]:
        assert self.state_mapping.keys() <= self._given | self._assigned.keys(), "Keras assigns in another way"
        return list(self._assigned.values())


class InContext(keras.layers.Layer):  # type: ignore[misc]
    """Calls a function as a layer's call is called: with its `training` and the type that it computes in.

    Called inside of another layer without `training`, the function gets that layer's.
    """

    def __init__(self, run: Callable[[bool | None], Any], **options: Any) -> None:
        super().__init__(**options)
        self._run = run

    def call(self, anchor: tf.Tensor, training: bool | None = None) -> Any:
        return self._run(training)


def training_now() -> bool | None:
    """Return the `training` of the layer that is being called, which Keras passes to the layers inside."""
    found: bool | None = InContext(lambda training: training)(tf.zeros(()))
    return found


def in_context_of(layer: Any, training: bool | None, run: Callable[[], Any]) -> Any:
    """Return `run()`, called as the layer's call is called with this `training`."""
    context = InContext(lambda _: run(), dtype=layer.dtype_policy, autocast=layer.autocast)
    return context(tf.zeros(()), training=training)


def state_of(layer: Any) -> Values:
    """Return the values now of what TensorFlow does not train in a layer: statistics, seeds, counters."""
    held = [(variable, VariableView(variable).value) for variable in layer.variables]
    return [(variable, value.read_value()) for variable, value in held if value is not None and not value.trainable]


def values_of(variables: Sequence[Any]) -> Values:
    """Return the values of variables now."""
    return [(variable, VariableView(variable).value.read_value()) for variable in variables]
