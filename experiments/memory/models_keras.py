"""The models of `memory` and their data, in Keras."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from .shapes import Convnet, Shape, Transformer

Data = tuple[Any, Any]

# Layers have public names: TensorFlow takes no scope that begins with an underscore, as Keras would name it.


class TransformerBlock(keras.layers.Layer):  # type: ignore[misc]
    """A block of attention and two dense layers."""

    def __init__(self, shape: Transformer) -> None:
        super().__init__()
        self.norm1, self.norm2 = keras.layers.LayerNormalization(), keras.layers.LayerNormalization()
        self.attention = keras.layers.MultiHeadAttention(shape.heads, shape.width // shape.heads)
        self.wide = keras.layers.Dense(4 * shape.width, activation="gelu")
        self.narrow = keras.layers.Dense(shape.width)
        self.dropout = keras.layers.Dropout(0.1, seed=0)

    def build(self, shape: Any) -> None:
        for layer in (self.norm1, self.norm2, self.wide, self.dropout):
            layer.build(shape)
        self.attention.build(shape, shape)
        self.narrow.build((*shape[:-1], 4 * shape[-1]))
        self.built = True

    def call(self, hidden: Any, training: bool | None = None) -> Any:
        inner = self.norm1(hidden)
        attended = self.attention(inner, inner, use_causal_mask=True, training=training)
        hidden = hidden + self.dropout(attended, training=training)
        return hidden + self.dropout(self.narrow(self.wide(self.norm2(hidden))), training=training)


class ConvnetBlock(keras.layers.Layer):  # type: ignore[misc]
    """A block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = [keras.layers.BatchNormalization() for _ in range(2)]
        self.convolutions = [keras.layers.Conv2D(width, 3, padding="same", use_bias=False) for _ in range(2)]

    def build(self, shape: Any) -> None:
        for layer in (*self.norms, *self.convolutions):
            layer.build(shape)
        self.built = True

    def call(self, hidden: Any, training: bool | None = None) -> Any:
        inner = hidden
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            inner = convolution(keras.activations.gelu(norm(inner, training=training)))
        return hidden + inner


class Native(keras.layers.Layer):  # type: ignore[misc]
    """A block under Keras's own switch."""

    def __init__(self, block: keras.layers.Layer) -> None:
        super().__init__()
        self.block = block

    def build(self, shape: Any) -> None:
        self.block.build(shape)
        self.built = True

    def call(self, hidden: Any, training: bool | None = None) -> Any:
        return keras.remat(lambda inputs: self.block(inputs, training=training))(hidden)


class Positions(keras.layers.Layer):  # type: ignore[misc]
    """Adds a trained vector for each place in a sequence."""

    def build(self, shape: Any) -> None:
        self.positions = self.add_weight(shape=shape[1:], initializer=keras.initializers.RandomNormal(0.1, seed=0))

    def call(self, hidden: Any) -> Any:
        return hidden + self.positions


def build_model(shape: Shape, native: bool) -> keras.Model:
    """Return the model, with the same weights at each call."""
    keras.utils.set_random_seed(0)
    if isinstance(shape, Convnet):
        inputs = keras.Input((shape.size, shape.size, 3))
        hidden = keras.layers.Conv2D(shape.width, 3, padding="same", use_bias=False)(inputs)
        blocks = [ConvnetBlock(shape.width) for _ in range(shape.blocks)]
        head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(shape.classes)]
    else:
        inputs = keras.Input((shape.length,), dtype="int32")
        hidden = Positions()(keras.layers.Embedding(shape.vocabulary, shape.width)(inputs))
        blocks = [TransformerBlock(shape) for _ in range(shape.blocks)]
        head = [keras.layers.LayerNormalization(), keras.layers.Dense(shape.vocabulary)]
    for layer in [*(Native(block) if native else block for block in blocks), *head]:
        hidden = layer(hidden)
    return keras.Model(inputs, hidden)


def build_optimizer(model: keras.Model) -> keras.optimizers.Optimizer:
    """Return plain SGD, so that weights show gradients."""
    return keras.optimizers.SGD(0.1)


def build_data(shape: Shape, samples: int) -> Data:
    """Return inputs and targets."""
    random = np.random.default_rng(1)
    if isinstance(shape, Convnet):
        images = random.standard_normal((samples, shape.size, shape.size, 3), np.float32)
        return images, random.integers(shape.classes, size=samples)
    tokens = random.integers(shape.vocabulary, size=(samples, shape.length + 1)).astype(np.int32)
    return tokens[:, :-1], tokens[:, 1:]


def build_loss(model_name: str) -> Callable[[keras.Model, Data], Any]:
    """Return the mean cross-entropy of a micro-batch."""

    def loss_fn(model: keras.Model, batch: Data) -> Any:
        inputs, targets = batch
        outputs = model(inputs, training=True)
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(targets, outputs, from_logits=True))

    return loss_fn
