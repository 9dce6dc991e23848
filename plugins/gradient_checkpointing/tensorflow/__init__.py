"""Gradient checkpointing of Keras 3 models in compiled TensorFlow steps."""

from .applied import apply, plan

__all__ = ["apply", "plan"]
