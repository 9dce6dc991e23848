"""The checks of a strategy for PyTorch; see `...conformance.checks`."""

from ...checks import SHARED
from . import checkpointing, collectives, data, models, parameters, steps, unused
from .table import TORCH

CHECKS = {**SHARED, **TORCH}

__all__ = ["CHECKS", "checkpointing", "collectives", "data", "models", "parameters", "steps", "unused"]
