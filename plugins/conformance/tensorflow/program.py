"""The program whose curves are compared, as a user of Keras 3 would write it; see `...conformance.torch.program`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ..variants import Variant

TENSOR_FILES = "tensors-*.bin"

Sample = tuple[Any, Any, Any]


class SmoothNet(keras.Model):  # type: ignore[misc]
    """A classifier of 12 features into 4 classes, all of it differentiable."""

    def __init__(self, dtype: str, unused: bool = False) -> None:
        super().__init__(dtype=dtype)

        def dense(units: int, seed: int, **options: Any) -> Any:
            drawn = keras.initializers.GlorotUniform(seed=seed)
            return keras.layers.Dense(units, kernel_initializer=drawn, dtype=dtype, **options)

        self.block = [
            dense(32, 5, use_bias=False),
            keras.layers.LayerNormalization(dtype=dtype),
            keras.layers.Activation("gelu", dtype=dtype),
            dense(16, 6),
            keras.layers.Activation("gelu", dtype=dtype),
            dense(4, 7),
        ]
        self.spare = dense(5, 8) if unused else None

    def build(self, shape: Any) -> None:
        for layer in self.block:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if self.spare is not None:
            self.spare.build((None, 5))
        self.built = True

    def call(self, features: Any) -> Any:
        for layer in self.block:
            features = layer(features)
        return features


def build(variant: Variant, dtype: str) -> tuple[SmoothNet, keras.optimizers.Optimizer, None]:
    """Return model, optimizer and no scheduler (Keras's belong to the optimizer), with fixed weights."""
    model = SmoothNet(dtype, variant.unused)
    model.build((None, 12))
    optimizer: keras.optimizers.Optimizer
    if variant.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    else:
        rate: Any = 3e-3
        if variant.schedule:  # it computes in the type of its rate
            rate = keras.optimizers.schedules.CosineDecay(tf.constant(rate, dtype), 60, alpha=0.1)
        optimizer = keras.optimizers.AdamW(rate, weight_decay=0.05, epsilon=1e-8)
    return model, optimizer, None


def dataset(variant: Variant, dtype: str) -> Sample:
    """Return features (length, 12), classes (length,) and tokens (length,) of a variant, the same at each call."""
    stream = np.random.RandomState(7)
    features, teacher = stream.randn(variant.length, 12), stream.randn(12, 4)
    classes = (features @ teacher + stream.randn(variant.length, 4)).argmax(1)
    return features.astype(dtype), classes, stream.randint(1, 9, variant.length)


def mean_loss(model: Any, batch: Sample) -> tf.Tensor:
    """Return the mean cross-entropy of a batch over its samples, as Keras computes it."""
    features, classes, _ = batch
    # By default Keras's losses compute in float32, even for other models.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, dtype=model.compute_dtype)
    return loss(classes, model(features))


def mean_token_loss(model: Any, batch: Sample) -> tf.Tensor:
    """Return the mean over tokens, each with its sample's cross-entropy, in TensorFlow's operations."""
    features, classes, tokens = batch
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, model(features))
    counts = tf.cast(tokens, losses.dtype)
    return tf.reduce_sum(losses * counts) / tf.reduce_sum(counts)


def count_tokens(batch: Sample) -> tf.Tensor:
    """Return the number of tokens of a batch."""
    return tf.reduce_sum(batch[2])


def dropout_net() -> tuple[keras.Model, keras.optimizers.Optimizer, Callable[[Any, Any], tf.Tensor]]:
    """Return model, optimizer and loss of a net of 4 features with dropout."""
    layers = [keras.layers.Dense(8), keras.layers.Dropout(0.5), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    return model, keras.optimizers.SGD(0.01), lambda m, x: tf.reduce_mean(tf.square(m(x, training=True)))


def tensor(values: Any, dtype: str) -> tf.Tensor:
    """Return a tensor of the framework."""
    return tf.constant(values, dtype)
