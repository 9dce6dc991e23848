"""A compiled evaluation of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from .step import Spec, convert
from .strategy import TensorFlowStrategy


def compiled_evaluation(
    strategy: TensorFlowStrategy, model: Any, fn: Callable[[Any, Any], Any], spec: Spec
) -> Callable[[Any], Any]:
    """Return `fn(model, ...)` as a compiled function of a micro-batch of this `spec`."""
    converted = convert(fn)

    def evaluate(micro_batch: Any) -> Any:
        return strategy.run(lambda micro_batch: converted(model, micro_batch), (micro_batch,))

    compiled: Callable[[Any], Any] = tf.function(evaluate, input_signature=(spec,), autograph=False)
    return compiled
