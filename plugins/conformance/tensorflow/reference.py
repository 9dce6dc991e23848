"""The curve that every engine of TensorFlow must follow: plain TensorFlow in one process.

It shares the model, the data and the loss with the engines' program, but neither sampler nor step.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import tensorflow as tf

from ..curves import Curve
from ..order import rows_of_steps
from ..variants import VARIANTS, Variant
from . import program


@cache
def reference_curve(variant_name: str, dtype: str, pieces: int = 1) -> Curve:
    """Train a variant in one process; `pieces` > 1 splits each batch: the noise floor of rounding."""
    variant = VARIANTS[variant_name]
    with tf.device("/CPU:0"):
        model, optimizer, _ = program.build(variant, dtype)
        data = program.dataset(variant, dtype)
        loss_fn = program.mean_token_loss if variant.tokens else program.mean_loss
        variables = model.trainable_variables
        optimizer.build(variables)

        @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
        def backward(features: Any, classes: Any, tokens: Any, fraction: Any) -> tuple[Any, list[Any]]:
            with tf.GradientTape() as tape:
                loss = loss_fn(model, (features, classes, tokens)) * tf.cast(fraction, dtype)
            return loss, tape.gradient(loss, [variable.value for variable in variables])

        @tf.function  # type: ignore[untyped-decorator]
        def update(gradients: list[Any]) -> Any:
            used = [number for number, gradient in enumerate(gradients) if gradient is not None]
            present = [gradients[number] for number in used]
            norm = tf.linalg.global_norm(present)
            if variant.clip_norm is not None:
                present, _ = tf.clip_by_global_norm(present, variant.clip_norm)
            optimizer.apply(present, [variables[number] for number in used])
            return norm

        losses: list[float] = []
        norms: list[float] = []
        for rows in rows_of_steps(variant.length):
            counts = data[2][rows].astype(np.float64) if variant.tokens else np.ones(len(rows))
            total, loss_of_batch = None, 0.0
            for piece, counted in zip(np.array_split(rows, pieces), np.array_split(counts, pieces), strict=True):
                if len(piece) > 0:
                    fraction = counted.sum() / counts.sum() if pieces > 1 else 1.0
                    loss, gradients = backward(*(tf.constant(column[piece]) for column in data), tf.constant(fraction))
                    total = (
                        gradients if total is None else [_plus(*pair) for pair in zip(total, gradients, strict=True)]
                    )
                    loss_of_batch += float(loss)
            norm = update(total)
            if variant.measures_norm:
                norms.append(float(norm))
            losses.append(loss_of_batch)
        weights = {f"{number}.{variable.name}": variable.numpy() for number, variable in enumerate(model.variables)}
    return Curve(tuple(losses), weights, tuple(norms))


def reference_loss(variant: Variant, data: program.Sample) -> float:
    """Return the mean loss of an untrained model over `data`."""
    with tf.device("/CPU:0"):
        return float(program.mean_loss(program.build(variant, "float32")[0], data))


def _plus(one: Any, other: Any) -> Any:
    return None if one is None else one + other
