"""A plan as text."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .choice import LayerCost, Plan

_HEADINGS = ("layer", "activations", "input", "forward", "")


def size(count: int) -> str:
    """Return bytes with a unit: `1.5 MiB`."""
    amount, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1024:
            break
        amount, unit = amount / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"


def describe(plan: Plan) -> str:
    """Return a table of the layers, and a line with the sums; layers alike that follow each other share a row."""
    checkpointed, operators = set(plan.layers), set(plan.operators)

    def alike(cost: LayerCost) -> tuple[int, int, str]:
        how = "recomputed" if cost.name in checkpointed else ""
        if cost.operators is not None and cost.name in operators:
            how += f", but for {size(cost.operators.kept_bytes - cost.input_bytes)} of operators' results"
        return cost.activation_bytes, cost.input_bytes, how

    rows = [_HEADINGS]
    for (activations, inputs, how), group in groupby(plan.costs, alike):
        costs = list(group)
        milliseconds = 1000 * sum(cost.seconds for cost in costs) / len(costs)
        name = costs[0].name if len(costs) == 1 else f"{costs[0].name} ... {costs[-1].name} ({len(costs)})"
        row = (name, size(activations), size(inputs), f"{milliseconds:.2f} ms", how)
        rows.append(row)
    rows.append(("others", size(plan.other_bytes), "", "", ""))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            word.ljust(width) if column in (0, 4) else word.rjust(width)
            for column, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, _sums(plan)])


def _sums(plan: Plan) -> str:
    budget = "" if plan.budget is None else f", with a budget of {size(plan.budget)}"
    return (
        f"{len(plan.layers)} of {len(plan.costs)} layers recomputed: {size(plan.predicted_bytes)} of activations "
        f"instead of {size(plan.without_bytes)}{budget}; {1000 * plan.seconds:.2f} ms more a micro-batch"
    )
