"""Checks of TensorFlow and Keras: the backend, the version, and whether an operation ran before."""

from __future__ import annotations

import os
from typing import Any

import keras
import tensorflow as tf

from ..errors import EngineUnavailableError, OptionError
from .compat import ModelView, eager_context


def check_keras() -> None:
    """Raise `EngineUnavailableError` if Keras runs on another framework than TensorFlow."""
    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise EngineUnavailableError(
            f"Keras runs on {backend}, but this strategy needs TensorFlow: start the program with "
            "KERAS_BACKEND=tensorflow, or set it before the first import of Keras"
        )


def check_model(model: Any) -> None:
    """Raise `OptionError` if a model is not one of Keras 3."""
    _check("model", model, keras.Model)


def check_optimizer(optimizer: Any) -> None:
    """Raise `OptionError` if an optimizer is not one of Keras 3."""
    _check("optimizer", optimizer, keras.optimizers.Optimizer)


def _check(kind: str, value: Any, expected: type) -> None:
    if isinstance(value, expected):
        return
    what = f"{type(value).__module__}.{type(value).__name__}"
    if _is_legacy(value):
        raise OptionError(
            f"the {kind} is {what}, of Keras 2 (tf-keras), which these strategies do not train: make it with "
            f"`import keras` (Keras 3){_legacy_switch()}"
        )
    raise OptionError(f"the {kind} is a {what}, not a Keras 3 {kind}: `import keras` makes one")


def _is_legacy(value: Any) -> bool:
    return any(part.__module__.split(".")[0] in ("tf_keras", "tensorflow_estimator") for part in type(value).__mro__)


def _legacy_switch() -> str:
    switched = os.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true")
    return ", and unset TF_USE_LEGACY_KERAS, which makes `tf.keras` Keras 2" if switched else ""


def context_is_initialized() -> bool:
    """Whether TensorFlow has created its devices, as the first operation does; after that they are fixed."""
    return bool(eager_context().is_initialized)


def compiled_loss(model: Any, batch: Any) -> tf.Tensor:
    """Return the loss with which a model was compiled, of `(x, y)` or `(x, y, sample_weight)`."""
    x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
    return model.compute_loss(x=x, y=y, y_pred=model(x, training=True), sample_weight=weight, training=True)


def random_seed_generators(model: Any) -> list[Any]:
    """Return the Keras seed generators of a model's layers, in the order of the layers."""
    return [generator for layer in layers_of(model) for generator in ModelView(layer).seed_generators]


def layers_of(model: Any) -> list[Any]:
    """Return a model and all layers in it, each once."""
    layers: list[Any] = ModelView(model).flat_layers()
    return layers
