"""The table of checks, and helpers that several of them use."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ....adapters import Strategy, Training
from ..framework import program_of
from ..variants import VARIANTS

Check = Callable[[Strategy, Path], Any]


class Checks(dict[str, Check]):
    """Checks by the names of their functions."""

    def add(self, function: Check) -> Check:
        """Register a check under its function's name; a decorator."""
        self[function.__name__] = function
        return function


SHARED = Checks()
"""The checks of all frameworks."""


def same_everywhere(strategy: Strategy, values: Iterable[Any]) -> bool:
    """Whether the values are the same to the bit on all workers."""
    arrays = [np.asarray(value).tobytes() for value in values]
    return all(other == arrays for other in strategy.gather(arrays))


def weights_of(training: Training) -> dict[str, np.ndarray[Any, Any]]:
    """Return copies of the whole weights, by name."""
    return {name: np.array(weight) for name, weight in training.weights()}


def same_weights(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> bool:
    """Whether two sets of weights are equal to the bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def batches_of(strategy: Strategy, training: Training, steps: int = 1_000_000) -> Any:
    """Return an iterator over batches for a training of variant "sgd_momentum"."""
    data = program_of(strategy).dataset(VARIANTS["sgd_momentum"], "float32")
    return (batch for batch, _ in zip(training.batches(data, 16, epochs=9), range(steps), strict=False))
