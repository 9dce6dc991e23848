"""Slow this worker in one phase of its steps, in models of either framework."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


class Brake:
    """Sleeps in one phase.

    phase: "data", "forward" or "backward"; `None` sleeps nowhere.
    seconds: how long, in each step.
    """

    def __init__(self) -> None:
        self.phase: str | None = None
        self.seconds = 0.0

    def __call__(self, phase: str) -> None:
        """Call in a phase."""
        if phase == self.phase:
            time.sleep(self.seconds)

    def weight(self, micro_batch: Any) -> float:
        """Return the number of samples, as a `weight` of `batches`, which is asked for in the phase "data"."""
        self("data")
        return float(len(micro_batch[0]))


def braked_in_torch(brake: Brake, loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a loss function that brakes in its forward and in its backward pass."""
    import torch

    class Drag(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, loss: Any) -> Any:
            return loss.view_as(loss)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            brake("backward")
            return gradients[0]

    def braked(model: Any, batch: Any) -> Any:
        brake("forward")
        return Drag.apply(loss_fn(model, batch))  # type: ignore[no-untyped-call]

    return braked


def braked_in_tensorflow(brake: Brake, loss_fn: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return a loss function that brakes in its forward and in its backward pass, inside a compiled step."""
    import numpy as np
    import tensorflow as tf

    def slept(phase: str, after: Any) -> Any:
        def sleep(_: Any) -> Any:
            brake(phase)
            return np.float32(0)

        with tf.control_dependencies([after]):
            return tf.numpy_function(sleep, [tf.zeros(())], tf.float32, stateful=True)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def drag(loss: Any) -> Any:
        def gradient(upstream: Any) -> Any:
            with tf.control_dependencies([slept("backward", upstream)]):
                return tf.identity(upstream)

        return tf.identity(loss), gradient

    def braked(model: Any, batch: Any) -> Any:
        inputs, targets = batch
        with tf.control_dependencies([slept("forward", inputs)]):
            inputs = tf.identity(inputs)
        return drag(loss_fn(model, (inputs, targets)))

    unconverted: Callable[[Any, Any], Any] = tf.autograph.experimental.do_not_convert(braked)
    return unconverted
