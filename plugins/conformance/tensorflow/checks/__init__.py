"""The checks of a strategy for TensorFlow; see `...conformance.checks`."""

from ...checks import SHARED
from . import data, optimizers, refusals, steps
from .table import TENSORFLOW

CHECKS = {**SHARED, **TENSORFLOW}

__all__ = ["CHECKS", "data", "optimizers", "refusals", "steps"]
