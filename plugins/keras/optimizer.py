"""Reduce gradients before a Keras optimizer clips and applies them, while one step is compiled."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from ...adapters.tensorflow.compat import OptimizerView
from ...adapters.tensorflow.stamps import stamp_after
from ...adapters.tensorflow.step import agreed_gradients, weigh
from ...adapters.tensorflow.strategy import TensorFlowStrategy

_SAME_VARIABLES = "each optimizer must be applied to the same variables on all workers"


@contextlib.contextmanager
def reduce_before_applying(
    model: Any, strategy: TensorFlowStrategy, fraction: tf.Tensor, name: str, times: list[tf.Tensor] | None = None
) -> Iterator[None]:
    """Inside the block, make all optimizers of a model apply the mean over the global batch.

    A worker's loss is the mean over its rows; times their `fraction` of the batch, the workers' sum is the mean.

    Args:
        times: gets, for each update, the times of this worker's loss (-1 if it is not known), of its gradients, and of
            their sum: (3,).
    """
    if times is None and strategy.worker.world_size == 1 and strategy.tf_strategy is tf.distribute.get_strategy():
        yield
        return
    with contextlib.ExitStack() as stack:
        for number, optimizer in enumerate(_optimizers(model)):
            strategy.prepare_optimizer(optimizer)
            stack.enter_context(_reducing(optimizer, strategy, fraction, f"{name}.{number}", times))
        yield


@contextlib.contextmanager
def _reducing(
    optimizer: Any, strategy: TensorFlowStrategy, fraction: tf.Tensor, name: str, times: list[tf.Tensor] | None
) -> Iterator[None]:
    stock_scale, stock_apply = optimizer.scale_loss, optimizer.apply
    scaled = False
    calls = 0
    trained: Any = None  # when the loss was there

    def scale_loss(loss: Any) -> Any:
        nonlocal scaled, trained
        scaled = True
        trained = None if times is None else stamp_after([loss])
        return weigh(stock_scale(loss), fraction)

    def apply(gradients: Any, variables: Any = None) -> Any:
        nonlocal calls
        calls += 1
        gradients = list(gradients)
        variables = list(OptimizerView(optimizer).trainable_variables if variables is None else variables)
        clips = bool(optimizer.clipnorm or optimizer.global_clipnorm or optimizer.clipvalue)
        signature = f"{len(gradients)} gradients of {type(optimizer).__name__}"
        own, used = agreed_gradients(strategy, signature, variables, gradients, clips, _SAME_VARIABLES)
        if not scaled:  # the user's own train_step may not call scale_loss
            own = [weigh(gradient, fraction) for gradient in own]
        begin = None if times is None else stamp_after(own)
        reduced = strategy.sum_in_graph(own, f"{name}.{calls}")
        if times is not None:
            known = tf.constant(-1.0, tf.float64) if trained is None else trained
            times.append(tf.stack([known, begin, stamp_after(reduced)]))
        return stock_apply(reduced, used)

    optimizer.scale_loss, optimizer.apply = scale_loss, apply
    try:
        yield
    finally:
        del optimizer.scale_loss, optimizer.apply


def _optimizers(model: Any) -> list[Any]:
    """Return the optimizer that a model was compiled with, and others for its own train_step."""
    held = [value for value in vars(model).values() if isinstance(value, keras.optimizers.Optimizer)]
    return list({id(optimizer): optimizer for optimizer in [model.optimizer, *held]}.values())
