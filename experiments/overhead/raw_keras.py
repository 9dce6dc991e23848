"""The raw side of `overhead` in TensorFlow: a hand-written training step on each engine.

It uses nothing of Farandole, and expects the engine to be initialized. The loss is not reduced over the workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from .models_keras import build_optimizer

Step = Any  # takes inputs and targets of this worker


def local(model: keras.Model, engine: tf.distribute.Strategy, global_batch_size: int) -> Step:
    """Plain TensorFlow, as in https://www.tensorflow.org/guide/keras/writing_a_training_loop_from_scratch."""
    optimizer = build_optimizer()

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


def multiworker(model: keras.Model, engine: tf.distribute.Strategy, global_batch_size: int) -> Step:
    """MultiWorkerMirroredStrategy, as in https://www.tensorflow.org/tutorials/distribute/custom_training."""
    optimizer = build_optimizer()

    def replica(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            losses = tf.reduce_mean(tf.square(model(inputs, training=True) - targets), axis=1)
            loss = tf.nn.compute_average_loss(losses, global_batch_size=global_batch_size)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))  # sums them over replicas
        return loss

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> Any:
        return engine.run(replica, args=(inputs, targets))

    return step


def horovod(model: keras.Model, engine: tf.distribute.Strategy, global_batch_size: int) -> Step:
    """Horovod, as in https://horovod.readthedocs.io/en/stable/tensorflow.html."""
    import horovod.tensorflow as hvd

    optimizer = build_optimizer()
    optimizer.build(model.trainable_variables)
    hvd.broadcast_variables([variable.value for variable in [*model.variables, *optimizer.variables]], root_rank=0)

    @tf.function  # type: ignore[untyped-decorator]
    def step(inputs: tf.Tensor, targets: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - targets))
        tape = hvd.DistributedGradientTape(tape)
        gradients = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    return step


RAW: dict[str, Callable[[keras.Model, tf.distribute.Strategy, int], Step]] = {
    "tf_local": local,
    "tf_multiworker": multiworker,
    "tf_horovod": horovod,
}
