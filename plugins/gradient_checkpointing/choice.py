"""Choose the layers to checkpoint, so that activations fit into a budget with the least recomputation.

The model is a chain of layers. At the end of the forward pass each layer keeps its activations, or only its input if it
is checkpointed, or its input and the results of some operators. In the backward pass a checkpointed layer's activations
come back, while the layers before it still keep theirs. The peak is the largest of these sums.
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

_CELLS = 2**17
"""How finely bytes are counted: rounded up to this fraction of all layers' bytes, unless they have a common divisor."""


@dataclass(frozen=True)
class Recomputed:
    """One way to checkpoint a layer.

    kept_bytes: what stays at the end of the forward pass.
    seconds: what computing it again adds.
    backward_bytes: what the layer holds in its own backward pass.
    """

    kept_bytes: int
    seconds: float
    backward_bytes: int


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs in one micro-batch.

    activation_bytes: what stays for the backward pass at the end of the forward pass if it is not checkpointed. A
        tensor that several layers save counts once.
    input_bytes: what stays if it is checkpointed.
    seconds: its forward pass, which checkpointing adds.
    recomputed_bytes: what it holds in its own backward pass if it is checkpointed; `None`: `activation_bytes`, or
        `input_bytes` if that is more.
    operators: the same layer checkpointed with the results of some operators kept, if it may be.
    """

    name: str
    activation_bytes: int
    input_bytes: int
    seconds: float
    recomputed_bytes: int | None = None
    operators: Recomputed | None = None

    @property
    def whole(self) -> Recomputed:
        """The layer checkpointed, with only its input kept."""
        most = max(self.activation_bytes, self.input_bytes)
        backward = most if self.recomputed_bytes is None else self.recomputed_bytes
        return Recomputed(self.input_bytes, self.seconds, backward)

    @property
    def ways(self) -> list[Recomputed]:
        """Without checkpointing, checkpointed, and, if it may be, with the results of operators kept."""
        plain = Recomputed(self.activation_bytes, 0.0, 0)
        return [plain, self.whole, *([] if self.operators is None else [self.operators])]


@dataclass(frozen=True)
class Plan:
    """Which layers are checkpointed, and what that costs in one micro-batch; `str` gives a table.

    layers: the checkpointed ones, in forward order.
    operators: of these, the ones that keep the results of operators.
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
    operators: tuple[str, ...] = ()

    @property
    def without_bytes(self) -> int:
        """The activation bytes without checkpointing."""
        return self.other_bytes + sum(cost.activation_bytes for cost in self.costs)

    def __str__(self) -> str:
        return describe(self)


def choose(costs: Sequence[LayerCost], other_bytes: int, budget: Budget | None, tail_bytes: int = 0) -> Plan:
    """Return the layers to checkpoint, and how, with the least recomputation; of equal ones, those with the least peak.

    The choice is exact: dynamic programming over the bytes that the layers so far keep. Bytes are counted in units of
    their greatest common divisor, or, if that would be too fine, rounded up to 1/131072 of the total for each layer. A
    smaller budget never gives a larger `predicted_bytes`.

    Args:
        costs: of all candidates, in forward order.
        other_bytes: what is saved outside of them.
        budget: in bytes, as text such as "4GiB", or as a share (a float up to 1) of what is taken without
            checkpointing; `None` checkpoints all candidates, with the results of operators kept where they may be.
        tail_bytes: the part of `other_bytes` that is saved after the last candidate, and released before its backward.

    Raises:
        OptionError: nothing fits; the message has the smallest budget that does.
    """
    chain = _Chain(costs, other_bytes, tail_bytes)
    if budget is None:
        return chain.plan(None, [len(cost.ways) - 1 for cost in costs])
    without = other_bytes + sum(cost.activation_bytes for cost in costs)
    allowed = budget_bytes(budget, without)
    if allowed >= without:  # also where the bytes, rounded up, would not fit
        return chain.plan(allowed, [0] * len(costs))
    if not chain.fits(allowed):
        floor = chain.floor(allowed)
        raise OptionError(
            f"budget={budget!r} is {size(allowed)} of activations, but with the best choice of layers they take "
            f"{size(floor)} ({floor} bytes): give at least that much, smaller micro-batches or smaller layers"
        )
    return chain.plan(allowed, chain.cheapest(allowed))


def peak_bytes(
    costs: Sequence[LayerCost],
    other_bytes: int,
    checkpointed: Collection[str],
    tail_bytes: int = 0,
    operators: Collection[str] = (),
) -> int:
    """Return the peak of activation bytes with these layers checkpointed, `operators` with those results kept."""
    ways = [(cost.name in checkpointed) + (cost.name in operators) for cost in costs]
    return _peak(costs, other_bytes, ways, tail_bytes, 1)


def _peak(costs: Sequence[LayerCost], other_bytes: int, ways: Sequence[int], tail_bytes: int, unit: int) -> int:
    """Return the peak, each layer's bytes rounded up to `unit`."""
    kept = peak = 0
    for cost, way in zip(costs, ways, strict=True):
        chosen = cost.ways[way]
        if way:
            peak = max(peak, other_bytes - tail_bytes + kept + _up(chosen.backward_bytes, unit) * unit)
        kept += _up(chosen.kept_bytes, unit) * unit
    return max(peak, other_bytes + kept)


def _unit(costs: Sequence[LayerCost]) -> int:
    """Return the unit to count bytes in; it does not depend on the budget, so that budgets can be compared."""
    sizes = [count for cost in costs for way in cost.ways for count in (way.kept_bytes, way.backward_bytes)]
    total = sum(max(way.kept_bytes for way in cost.ways) for cost in costs)
    return max(math.gcd(*sizes), _up(total, _CELLS), 1)


def _up(number: int, unit: int) -> int:
    return -(-number // unit)


class _Chain:
    """The layers, with their bytes in units and their times in whole nanoseconds, so that sums are exact."""

    def __init__(self, costs: Sequence[LayerCost], other_bytes: int, tail_bytes: int) -> None:
        self._costs = costs
        self._unit = _unit(costs)
        self._other = other_bytes
        self._tail = tail_bytes
        self._released = other_bytes - tail_bytes
        self._layers = [
            [
                (_up(way.kept_bytes, self._unit), _up(way.backward_bytes, self._unit), round(way.seconds * 1e9))
                for way in cost.ways
            ]
            for cost in costs
        ]

    def plan(self, budget: int | None, ways: Sequence[int]) -> Plan:
        """Return the plan for a choice of one of the `ways` of each layer."""
        pairs = list(zip(self._costs, ways, strict=True))
        return Plan(
            layers=tuple(cost.name for cost, way in pairs if way),
            costs=tuple(self._costs),
            other_bytes=self._other,
            budget=budget,
            predicted_bytes=_peak(self._costs, self._other, ways, self._tail, self._unit if any(ways) else 1),
            seconds=sum(cost.ways[way].seconds for cost, way in pairs),
            operators=tuple(cost.name for cost, way in pairs if way > 1),
        )

    def fits(self, budget: int) -> bool:
        """Whether any choice fits: the one that keeps the least after each layer does, if any."""
        forward, backward = self._room(budget)
        kept = 0
        for layer in self._layers:
            kept += min(keeps for keeps, recomputed, _ in layer if not recomputed or kept + recomputed <= backward)
        return kept <= forward

    def floor(self, too_little: int) -> int:
        """Return the smallest budget in bytes that some choice fits, above one that none does."""
        enough = self._other + self._unit * sum(layer[0][0] for layer in self._layers)
        while enough - too_little > 1:
            middle = (enough + too_little) // 2
            if self.fits(middle):
                enough = middle
            else:
                too_little = middle
        return enough

    def cheapest(self, budget: int) -> list[int]:
        """Return which of its ways each layer goes; the budget must fit."""
        forward, backward = self._room(budget)
        forward = min(forward, sum(max(keeps for keeps, *_ in layer) for layer in self._layers))
        never = np.iinfo(np.int64).max // 2
        # By the units that the layers so far keep: the least time, and for that the least peak of recomputing.
        time, peak = np.full(forward + 1, never), np.zeros(forward + 1, np.int64)
        time[0] = 0
        kept = np.arange(forward + 1)
        decisions: list[list[Any]] = []
        for (keeps, _, _), *others in self._layers:
            best = _moved(time, keeps, never), _moved(peak, keeps, 0)
            decisions.append([])
            for keeps, recomputed, nanoseconds in others:
                again = (
                    _moved(np.where(kept + recomputed <= backward, time + nanoseconds, never), keeps, never),
                    _moved(np.maximum(peak, kept + recomputed), keeps, 0),
                )
                better = (again[0] < best[0]) | ((again[0] == best[0]) & (again[1] < best[1]))
                best = np.where(better, again[0], best[0]), np.where(better, again[1], best[1])
                decisions[-1].append(np.packbits(better))
            time, peak = best
        peak = np.maximum(self._released + self._unit * peak, self._other + self._unit * kept)
        at = int(np.lexsort((peak, time))[0])
        ways = []
        for layer, taken in zip(reversed(self._layers), reversed(decisions), strict=True):
            bits = [better[at >> 3] >> (7 - at % 8) & 1 for better in taken]
            ways.append(max((way for way, bit in enumerate(bits, 1) if bit), default=0))
            at -= layer[ways[-1]][0]
        return ways[::-1]

    def _room(self, budget: int) -> tuple[int, int]:
        """Return the units that fit at the end of the forward pass, and in the backward pass."""
        return (budget - self._other) // self._unit, (budget - self._released) // self._unit


def _moved(values: Any, by: int, empty: int) -> Any:
    """Return `values` moved up by some places, with `empty` in those that become free."""
    moved = np.full_like(values, empty)
    if by < len(values):
        moved[by:] = values[: len(values) - by]
    return moved
