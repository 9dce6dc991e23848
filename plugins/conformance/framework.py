"""The suite's modules of each framework, imported when they are first needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...adapters import Strategy

if TYPE_CHECKING:
    from .checks.common import Check
    from .curves import Curve
    from .variants import Variant


def program_of(strategy: Strategy) -> Any:
    """Return the module with the program of the strategy's framework; see `torch.program` for its functions."""
    return _module(strategy.capabilities.framework, "program")


def checks_of(framework: str) -> Mapping[str, Check]:
    """Return the checks of all frameworks and those of this one, by name."""
    checks: Mapping[str, Check] = _module(framework, "checks").CHECKS
    return checks


def reference_curve(framework: str, variant: str, dtype: str, pieces: int = 1) -> Curve:
    """Return the curve that the engines of a framework must follow; see `torch.reference`."""
    curve: Curve = _module(framework, "reference").reference_curve(variant, dtype, pieces)
    return curve


def reference_loss(framework: str, variant: Variant, data: Any) -> float:
    """Return the mean loss of an untrained model over `data`, in one process."""
    loss: float = _module(framework, "reference").reference_loss(variant, data)
    return loss


def faults_module(framework: str) -> str:
    """Return the name of the module for workers that fail."""
    return f"{__package__}.{framework}.faults"


def _module(framework: str, name: str) -> Any:
    return importlib.import_module(f".{framework}.{name}", __package__)
