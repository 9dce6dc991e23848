"""One random seed for all workers while `fit` builds its data: Keras shuffles arrays with TensorFlow's global seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import tensorflow as tf

from ...adapters.tensorflow.compat import eager_context
from ...adapters.tensorflow.strategy import TensorFlowStrategy


@contextlib.contextmanager
def shared_seed(strategy: TensorFlowStrategy) -> Iterator[None]:
    """Use rank 0's global seed, or a random one from rank 0, if workers differ or have none; then restore it."""
    import random

    context = eager_context()
    own = context.seed
    seeds = strategy.gather((own, random.SystemRandom().getrandbits(31)))
    if all(seed is not None and seed == seeds[0][0] for seed, _ in seeds):
        yield
        return
    first, drawn = seeds[0]
    tf.random.set_seed(drawn if first is None else first)
    try:
        yield
    finally:
        context.seed = own
