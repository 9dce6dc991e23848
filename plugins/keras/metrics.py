"""Metrics over all workers: after every step, each worker's metric variables hold the global sums."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from ...adapters.errors import OptionError
from ...adapters.tensorflow.compat import VariableView
from ...adapters.tensorflow.strategy import TensorFlowStrategy


class MetricStates:
    """The metric variables of a model around one step: set to zero before it, summed over workers after it.

    A metric's state is a sum over samples (Keras says so by its variables' aggregation), so the workers' increments can
    be summed. Reading a metric is then local: one worker may read alone.
    """

    def __init__(self, model: Any, strategy: TensorFlowStrategy) -> None:
        self._model = model
        self._strategy = strategy
        self._variables = [variable for metric in model.metrics for variable in metric.variables]
        for variable in self._variables:
            if variable.aggregation not in ("sum", None) and strategy.worker.world_size > 1:
                raise OptionError(
                    f"the metric variable {variable.path!r} is aggregated by {variable.aggregation!r}: only sums over "
                    "samples can be combined over workers (add_variable(..., aggregation='sum'))"
                )
            _make_local(variable, strategy)
        self._before = [variable.value.read_value() for variable in self._variables]
        for variable, value in zip(self._variables, self._before, strict=True):
            variable.assign(tf.zeros_like(value))

    def reduce(self, logs: dict[str, Any], fraction: tf.Tensor, print_: tf.Tensor, name: str, problem: str) -> Any:
        """Sum the step's increments, and return its logs over all workers.

        Args:
            fraction: this worker's fraction of the global batch.
            print_: fingerprint of the global batch, which must be the same on all workers.
            problem: the error message if it is not.
        """
        added = [tf.cast(variable.value.read_value(), tf.float64) for variable in self._variables]
        if self._strategy.worker.world_size > 1:
            added, logs = self._sum(added, logs, fraction, print_, name, problem)
        for variable, before, more in zip(self._variables, self._before, added, strict=True):
            variable.assign(before + tf.cast(more, before.dtype))
        self._added, self._logs = added, logs
        known = self._model.get_metrics_result()
        return {key: known.get(key, value) for key, value in logs.items()}

    def step_loss(self) -> tf.Tensor:
        """Return the mean loss over the global batch of this step alone: (), float64.

        NaN if the user's own `train_step` reports a loss neither as a metric nor in the logs.
        """
        own = self._logs.get("loss")
        loss = tf.cast(own, tf.float64) if _is_number(own) else tf.constant(float("nan"), tf.float64)
        added_to = {id(variable): more for variable, more in zip(self._variables, self._added, strict=True)}
        for metric in self._model.metrics:
            if metric.name == "loss" and isinstance(metric, keras.metrics.Mean):
                total, count = added_to[id(metric.total)], added_to[id(metric.count)]
                loss = tf.where(count > 0, tf.math.divide_no_nan(total, count), loss)
        return loss

    def _sum(
        self,
        added: list[tf.Tensor],
        logs: dict[str, Any],
        fraction: tf.Tensor,
        print_: tf.Tensor,
        name: str,
        problem: str,
    ) -> tuple[list[tf.Tensor], dict[str, Any]]:
        others = {key: tf.cast(value, tf.float64) for key, value in logs.items() if _is_number(value)}
        vectors = [
            *(tf.where(fraction > 0, values, 0.0) for values in added),
            *(tf.where(fraction > 0, value * fraction, 0.0) for value in others.values()),
            tf.stack([print_, print_ * print_]),
        ]
        # In the gradients' type, if that is exact: engines fuse tensors of one type.
        narrow = self._strategy.worker.world_size <= 256 and all(v.dtype == "float32" for v in self._variables)
        flat = tf.cast(tf.concat([tf.reshape(v, [-1]) for v in vectors], 0), tf.float32 if narrow else tf.float64)
        (total,) = self._strategy.sum_in_graph([flat], f"{name}.metrics")
        total = tf.cast(total, tf.float64)
        sums = tf.split(total, [tf.size(vector) for vector in vectors])
        prints, squares = tf.unstack(tf.ensure_shape(sums[-1], [2]))
        same = tf.equal(prints * prints, squares * self._strategy.worker.world_size)
        with tf.control_dependencies([tf.debugging.Assert(same, [problem])]):
            summed = [tf.reshape(tf.identity(s), tf.shape(v)) for s, v in zip(sums, vectors, strict=True)]
        found = dict(zip(others, summed[len(added) :], strict=False))
        means = {key: tf.cast(found[key], value.dtype) if key in found else value for key, value in logs.items()}
        return summed[: len(added)], means


def _make_local(variable: Any, strategy: TensorFlowStrategy) -> None:
    """Replace a variable that TensorFlow would reduce at each reading by this worker's local one."""
    if isinstance(variable.value, tf.distribute.DistributedValues):
        VariableView(variable).value = strategy.tf_strategy.experimental_local_results(variable.value)[0]


def _is_number(value: Any) -> bool:
    return bool(tf.is_tensor(value) and value.shape.rank == 0 and value.dtype.is_floating)
