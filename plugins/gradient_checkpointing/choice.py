"""Choose the layers to checkpoint, so that activations fit into a budget with the least recomputation.

The model is a chain of layers. At the end of the forward pass each layer keeps its activations, or only its input if it
is checkpointed. In the backward pass a checkpointed layer's activations come back, while the layers before it still
keep theirs. The peak is the largest of these sums.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...adapters.errors import OptionError
from .budget import Budget, budget_bytes
from .table import describe, size

_CELLS = 2**18
"""How finely bytes are counted: rounded up to this fraction of all layers' bytes, unless they have a common divisor."""


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs in one micro-batch.

    activation_bytes: what stays for the backward pass at the end of the forward pass if it is not checkpointed. A
        tensor that several layers save counts once.
    input_bytes: what stays if it is checkpointed.
    seconds: its forward pass, which checkpointing adds.
    recomputed_bytes: what it holds in its own backward pass if it is checkpointed; `None`: `activation_bytes`, or
        `input_bytes` if that is more.
    """

    name: str
    activation_bytes: int
    input_bytes: int
    seconds: float
    recomputed_bytes: int | None = None

    @property
    def backward_bytes(self) -> int:
        """`recomputed_bytes`, with its default."""
        return max(self.activation_bytes, self.input_bytes) if self.recomputed_bytes is None else self.recomputed_bytes


@dataclass(frozen=True)
class Plan:
    """Which layers are checkpointed, and what that costs in one micro-batch; `str` gives a table.

    layers: the checkpointed ones, in forward order.
    costs: those of all candidates, in forward order.
    other_bytes: what is saved outside of the candidates.
    budget: in bytes.
    predicted_bytes: the peak of activation bytes.
    seconds: what recomputing adds.
    """

    layers: tuple[str, ...]
    costs: tuple[LayerCost, ...]
    other_bytes: int
    budget: int | None
    predicted_bytes: int
    seconds: float

    @property
    def without_bytes(self) -> int:
        """The activation bytes without checkpointing."""
        return self.other_bytes + sum(cost.activation_bytes for cost in self.costs)

    def __str__(self) -> str:
        return describe(self)


def choose(costs: Sequence[LayerCost], other_bytes: int, budget: Budget | None, tail_bytes: int = 0) -> Plan:
    """Choose the layers that fit into a budget with the least recomputation; of equal ones, those with the least peak.

    The choice is exact: dynamic programming over the bytes that the layers so far keep. Bytes are counted in units of
    their greatest common divisor, or, if that would be too fine, rounded up to 1/262144 of the total for each layer. A
    smaller budget never gives a larger `predicted_bytes`.

    Args:
        costs: of all candidates, in forward order.
        other_bytes: what is saved outside of them.
        budget: in bytes, as text such as "4GiB", or as a share (a float up to 1) of what is taken without
            checkpointing; `None` checkpoints all candidates.
        tail_bytes: the part of `other_bytes` that is saved after the last candidate, and released before its backward.

    Raises:
        OptionError: nothing fits; the message has the smallest budget that does.
    """
    if budget is None:
        return _plan(costs, other_bytes, tail_bytes, None, {cost.name for cost in costs})
    without = other_bytes + sum(cost.activation_bytes for cost in costs)
    allowed = budget_bytes(budget, without)
    if allowed >= without:  # also where the bytes, rounded up, would not fit
        return _plan(costs, other_bytes, tail_bytes, allowed, ())
    chain = _Chain(costs, other_bytes, tail_bytes)
    if not chain.fits(allowed):
        floor = chain.floor(allowed)
        raise OptionError(
            f"budget={budget!r} is {size(allowed)} of activations, but with the best choice of layers they take "
            f"{size(floor)} ({floor} bytes): give at least that much, smaller micro-batches or smaller layers"
        )
    return _plan(costs, other_bytes, tail_bytes, allowed, chain.cheapest(allowed))


def peak_bytes(
    costs: Sequence[LayerCost], other_bytes: int, checkpointed: Collection[str], tail_bytes: int = 0, unit: int = 1
) -> int:
    """Return the peak of activation bytes with these layers checkpointed, the layers' bytes rounded up to `unit`."""
    kept = peak = 0
    for cost in costs:
        if cost.name in checkpointed:
            peak = max(peak, other_bytes - tail_bytes + kept + _up(cost.backward_bytes, unit) * unit)
            kept += _up(cost.input_bytes, unit) * unit
        else:
            kept += _up(cost.activation_bytes, unit) * unit
    return max(peak, other_bytes + kept)


def _plan(
    costs: Sequence[LayerCost], other_bytes: int, tail_bytes: int, budget: int | None, checkpointed: Collection[str]
) -> Plan:
    return Plan(
        layers=tuple(cost.name for cost in costs if cost.name in checkpointed),
        costs=tuple(costs),
        other_bytes=other_bytes,
        budget=budget,
        predicted_bytes=peak_bytes(costs, other_bytes, checkpointed, tail_bytes, _unit(costs) if checkpointed else 1),
        seconds=sum(cost.seconds for cost in costs if cost.name in checkpointed),
    )


def _unit(costs: Sequence[LayerCost]) -> int:
    """Return the unit to count bytes in; it does not depend on the budget, so that budgets can be compared."""
    sizes = [count for cost in costs for count in (cost.activation_bytes, cost.input_bytes, cost.backward_bytes)]
    total = sum(max(cost.activation_bytes, cost.input_bytes) for cost in costs)
    return max(math.gcd(*sizes), _up(total, _CELLS), 1)


def _up(number: int, unit: int) -> int:
    return -(-number // unit)


class _Chain:
    """The layers, with their bytes in units and their times in whole nanoseconds, so that sums are exact."""

    def __init__(self, costs: Sequence[LayerCost], other_bytes: int, tail_bytes: int) -> None:
        self._costs = costs
        self._unit = _unit(costs)
        self._other = other_bytes
        self._released = other_bytes - tail_bytes
        self._layers = [
            (
                _up(cost.activation_bytes, self._unit),
                _up(cost.input_bytes, self._unit),
                _up(cost.backward_bytes, self._unit),
                round(cost.seconds * 1e9),
            )
            for cost in costs
        ]

    def fits(self, budget: int) -> bool:
        """Whether any choice fits: the one that keeps the least after each layer does, if any."""
        forward, backward = self._room(budget)
        kept = 0
        for activations, inputs, recomputed, _ in self._layers:
            may = kept + recomputed <= backward
            kept += min(activations, inputs) if may else activations
        return kept <= forward

    def floor(self, too_little: int) -> int:
        """Return the smallest budget in bytes that some choice fits, above one that none does."""
        enough = self._other + self._unit * sum(activations for activations, *_ in self._layers)
        while enough - too_little > 1:
            middle = (enough + too_little) // 2
            if self.fits(middle):
                enough = middle
            else:
                too_little = middle
        return enough

    def cheapest(self, budget: int) -> set[str]:
        """Return the names of the layers to checkpoint; the budget must fit."""
        forward, backward = self._room(budget)
        forward = min(forward, sum(max(activations, inputs) for activations, inputs, *_ in self._layers))
        never = np.iinfo(np.int64).max // 2
        # By the units that the layers so far keep: the least time, and for that the least peak of recomputing.
        time, peak = np.full(forward + 1, never), np.zeros(forward + 1, np.int64)
        time[0] = 0
        kept = np.arange(forward + 1)
        decisions: list[Any] = []
        for activations, inputs, recomputed, nanoseconds in self._layers:
            keeps = _moved(time, activations, never), _moved(peak, activations, 0)
            may = kept + recomputed <= backward
            again = (
                _moved(np.where(may, time + nanoseconds, never), inputs, never),
                _moved(np.maximum(peak, kept + recomputed), inputs, 0),
            )
            better = (again[0] < keeps[0]) | ((again[0] == keeps[0]) & (again[1] < keeps[1]))
            time, peak = np.where(better, again[0], keeps[0]), np.where(better, again[1], keeps[1])
            decisions.append(np.packbits(better))
        peak = np.maximum(self._released + self._unit * peak, self._other + self._unit * kept)
        best = int(np.lexsort((peak, time))[0])
        checkpointed = set()
        for cost, layer, better in zip(reversed(self._costs), reversed(self._layers), reversed(decisions), strict=True):
            if better[best >> 3] >> (7 - best % 8) & 1:
                checkpointed.add(cost.name)
                best -= layer[1]
            else:
                best -= layer[0]
        return checkpointed

    def _room(self, budget: int) -> tuple[int, int]:
        """Return the units that fit at the end of the forward pass, and in the backward pass."""
        return (budget - self._other) // self._unit, (budget - self._released) // self._unit


def _moved(values: Any, by: int, empty: int) -> Any:
    """Return `values` moved up by some places, with `empty` in those that become free."""
    moved = np.full_like(values, empty)
    if by < len(values):
        moved[by:] = values[: len(values) - by]
    return moved
