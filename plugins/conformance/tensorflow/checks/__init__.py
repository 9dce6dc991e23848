"""The checks of a strategy for TensorFlow; see `...conformance.checks`."""

from ...checks import SHARED
from . import checkpointing, data, optimizers, refusals, steps
from .table import TENSORFLOW

CHECKS = {**SHARED, **TENSORFLOW}

__all__ = ["CHECKS", "checkpointing", "data", "optimizers", "refusals", "steps"]
