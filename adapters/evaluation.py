"""The exact mean over the samples of a dataset, from means over micro-batches of different sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import OptionError
from .strategy import Strategy
from .structure import map_structure


class SampleMean:
    """A mean of a structure of scalars; each worker adds its own micro-batches, and all call `over_workers`."""

    def __init__(self) -> None:
        self._shape: Any = None  # the structure, with the number of each leaf
        self._sums: list[float] = []
        self._count = 0

    def add(self, means: Any, count: int) -> None:
        """Add the means of a micro-batch of `count` samples; of a placeholder, with `count` 0, only the structure is
        used.

        Raises:
            OptionError: a leaf is not a scalar.
        """
        values: list[float] = []

        def take(leaf: Any) -> int:
            # Also for a placeholder, so that all workers raise together; its value, perhaps NaN, is not used.
            values.append(_number(leaf))
            return len(values) - 1

        shape = map_structure(take, means)
        if self._shape is None:
            self._shape, self._sums = shape, [0.0] * len(values)
        if shape != self._shape:
            raise OptionError(f"evaluate()'s function returned other names or another number of values: {means!r}")
        if count:
            self._sums = [total + value * count for total, value in zip(self._sums, values, strict=True)]
            self._count += count

    def over_workers(self, strategy: Strategy) -> Any:
        """Return the mean over the samples of all workers, a float for each scalar; all workers call it."""
        totals = strategy.reduce(np.array([*self._sums, float(self._count)]), "sum")
        return map_structure(lambda number: float(totals[number] / totals[-1]), self._shape)


def _number(leaf: Any) -> float:
    try:
        return float(leaf)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(leaf, "shape", None)
        kind = type(leaf).__name__ if shape is None else f"a {type(leaf).__name__} of shape {tuple(shape)}"
        raise OptionError(
            f"evaluate()'s function must return means over the samples of a micro-batch, scalars, but returned {kind}"
        ) from None
