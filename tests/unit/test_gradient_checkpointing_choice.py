"""Which layers fit into a budget with the least recomputation, against all choices there are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.adapters import OptionError
from farandole.plugins.gradient_checkpointing import GradientCheckpointing, LayerCost, plan
from farandole.plugins.gradient_checkpointing.budget import budget_bytes
from farandole.plugins.gradient_checkpointing.choice import Plan, Recomputed, choose, peak_bytes


@st.composite
def chains(draw: st.DrawFn, most: int, step: int = 1) -> tuple[list[LayerCost], int, int]:
    """Layers, the bytes outside of them, and the part of these that is saved after the last."""
    layers = []
    for number in range(draw(st.integers(1, most))):
        activations, inputs = draw(st.integers(0, most * 5)), draw(st.integers(0, 9))
        more = draw(st.none() | st.integers(0, 9).map(lambda extra, least=activations: (least + extra) * step))
        seconds = draw(st.integers(1, 9))
        operators = None
        if draw(st.booleans()):  # more is kept, and less computed again
            kept, left = inputs + draw(st.integers(0, 9)), draw(st.integers(1, seconds))
            operators = Recomputed(kept * step, left / 1000, max(kept, activations) * step)
        layers.append(LayerCost(str(number), activations * step, inputs * step, seconds / 1000, more, operators))
    other = draw(st.integers(0, 20)) * step
    return layers, other, draw(st.integers(0, other))


def every_choice(costs: list[LayerCost]) -> Iterator[tuple[float, list[str], list[str]]]:
    """Yield the seconds of each choice, and its layers: checkpointed, and, of those, with operators' results kept."""
    for ways in product(*(range(len(cost.ways)) for cost in costs)):
        pairs = list(zip(costs, ways, strict=True))
        again = sum(cost.ways[way].seconds for cost, way in pairs)
        yield (
            round(again, 6),
            [cost.name for cost, way in pairs if way],
            [cost.name for cost, way in pairs if way > 1],
        )


@settings(max_examples=60, deadline=None)
@given(chains(6), st.data())
def test_the_choice_is_the_best_of_all(chain: tuple[list[LayerCost], int, int], data: st.DataObject) -> None:
    costs, other, tail = chain
    choices = [(again, peak_bytes(costs, other, names, tail, kept)) for again, names, kept in every_choice(costs)]
    floor = min(peak for _, peak in choices)
    budget = data.draw(st.integers(max(floor, 1), max(floor, 1) + 60))
    chosen = choose(costs, other, budget, tail)
    assert chosen.predicted_bytes == peak_bytes(costs, other, chosen.layers, tail, chosen.operators) <= budget
    best = min((again, peak) for again, peak in choices if peak <= budget)
    assert (round(chosen.seconds, 6), chosen.predicted_bytes) == best
    if floor > 1:
        with pytest.raises(OptionError, match=rf"\({floor} bytes\)"):
            choose(costs, other, floor - 1, tail)


@settings(max_examples=6, deadline=None)
@given(chains(5, step=1_234_567))
def test_a_smaller_budget_never_counts_more(chain: tuple[list[LayerCost], int, int]) -> None:
    costs, other, tail = chain
    costs = [replace(cost, activation_bytes=cost.activation_bytes + int(cost.name)) for cost in costs]
    last = float("inf")
    for tenth in range(10, 0, -1):
        try:
            chosen = choose(costs, other, tenth / 10, tail)
        except OptionError:
            return
        peak = peak_bytes(costs, other, chosen.layers, tail, chosen.operators)
        assert chosen.budget is not None and peak <= chosen.budget
        assert chosen.predicted_bytes <= min(last, chosen.budget)
        last = chosen.predicted_bytes


def blocks(count: int, operators: bool = False) -> list[LayerCost]:
    """Blocks whose sizes have no divisor in common, so that bytes are rounded."""
    return [
        LayerCost(
            f"b.{n}",
            12_582_912 + 97 * n,
            1_048_576 + n,
            0.001 + n % 7 / 1e5,
            operators=Recomputed(7_340_032 + 31 * n, 0.0004 + n % 5 / 1e5, 12_582_912) if operators else None,
        )
        for n in range(count)
    ]


@pytest.mark.parametrize("operators", [False, True])
def test_a_hundred_layers_are_planned_in_a_moment(operators: bool) -> None:
    started = time.process_time()
    chosen = choose(blocks(100, operators), 5_000_000, 0.5)
    assert time.process_time() - started < 5
    peak = peak_bytes(chosen.costs, 5_000_000, chosen.layers, operators=chosen.operators)
    assert chosen.budget is not None
    assert 0.99 * chosen.budget < peak <= chosen.predicted_bytes <= chosen.budget
    assert operators or 50 <= len(chosen.layers) < 60


def test_layers_keep_operators_results_where_that_fits_and_nothing_where_it_does_not() -> None:
    """Two thirds of the time for one third of the memory."""
    costs = [LayerCost(f"b.{n}", 900, 100, 0.003, 900, Recomputed(600, 0.001, 1000)) for n in range(10)]
    assert choose(costs, 0, None).operators == tuple(cost.name for cost in costs)
    roomy, tight, least = choose(costs, 0, 0.9), choose(costs, 0, 0.6), choose(costs, 0, 0.2)
    assert len(roomy.layers) == len(roomy.operators) == 3
    assert 0 < len(tight.operators) < len(tight.layers) <= 10
    assert not least.operators and len(least.layers) == 9  # the last one's come back anyway
    assert "recomputed, but for 500 bytes of operators' results" in str(tight)


def test_rounding_changes_the_prediction_by_little() -> None:
    for tenth in range(2, 11):
        chosen = choose(blocks(100), 5_000_000, tenth / 10)
        exact = peak_bytes(chosen.costs, 5_000_000, chosen.layers)
        assert exact <= chosen.predicted_bytes <= 1.005 * exact


def test_without_a_budget_all_are_checkpointed_and_with_enough_none() -> None:
    costs = blocks(3)
    assert choose(costs, 7, None).layers == ("b.0", "b.1", "b.2")
    assert choose(costs, 7, 1.0).layers == choose(costs, 7, "4GiB").layers == ()
    assert choose([], 7, 7).predicted_bytes == 7


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(5, 5), ("4GiB", 4 * 2**30), ("1.5 MB", 1_500_000), ("7b", 7), ("2KiB", 2048), (0.25, 250), (1.0, 1000)],
)
def test_budgets_are_read(budget: Any, expected: int) -> None:
    assert budget_bytes(budget, 1000) == expected


@pytest.mark.parametrize("budget", [0, -1, 0.0, 1.5, -0.5, True, "", "4", "0GiB", "GiB", "4 gigs", [1], float("nan")])
def test_budgets_that_mean_nothing_are_refused_at_once(budget: Any) -> None:
    with pytest.raises(OptionError, match=rf"^budget={re.escape(repr(budget))} must be bytes"):
        GradientCheckpointing(budget=budget)


def test_a_plan_is_told_in_a_table() -> None:
    costs = [*blocks(1), *(LayerCost(f"c.{n}", 2048, 1024, 0.002) for n in range(3))]
    table = str(Plan(("c.0", "c.1"), tuple(costs), 500, 2**30, 3 * 2**20, 0.004))
    assert table.splitlines() == [
        "layer            activations    input  forward",
        "b.0                 12.0 MiB  1.0 MiB  1.00 ms",
        "c.0 ... c.1 (2)      2.0 KiB  1.0 KiB  2.00 ms  recomputed",
        "c.2                  2.0 KiB  1.0 KiB  2.00 ms",
        "others             500 bytes",
        "2 of 4 layers recomputed: 3.0 MiB of activations instead of 12.0 MiB, with a budget of 1.0 GiB; "
        "4.00 ms more a micro-batch",
    ]


def test_a_model_of_no_framework_is_refused() -> None:
    with pytest.raises(OptionError, match="not a list"):
        plan([], None)
