"""Which layers fit into a budget with the least recomputation, against all choices there are."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.adapters import OptionError
from farandole.plugins.gradient_checkpointing import GradientCheckpointing, LayerCost, plan
from farandole.plugins.gradient_checkpointing.budget import budget_bytes
from farandole.plugins.gradient_checkpointing.choice import Plan, choose, peak_bytes


@st.composite
def chains(draw: st.DrawFn, most: int, step: int = 1) -> tuple[list[LayerCost], int, int]:
    """Layers, the bytes outside of them, and the part of these that is saved after the last."""
    layers = []
    for number in range(draw(st.integers(1, most))):
        activations, inputs = draw(st.integers(0, most * 5)), draw(st.integers(0, 9))
        more = draw(st.none() | st.integers(0, 9).map(lambda extra, least=activations: (least + extra) * step))
        layers.append(LayerCost(str(number), activations * step, inputs * step, draw(st.integers(1, 9)) / 1000, more))
    other = draw(st.integers(0, 20)) * step
    return layers, other, draw(st.integers(0, other))


def every_choice(costs: list[LayerCost]) -> Iterator[set[str]]:
    names = [cost.name for cost in costs]
    for count in range(len(names) + 1):
        yield from map(set, combinations(names, count))


def seconds(costs: list[LayerCost], names: Any) -> float:
    return sum(cost.seconds for cost in costs if cost.name in names)


@settings(max_examples=60, deadline=None)
@given(chains(8), st.data())
def test_the_choice_is_the_best_of_all(chain: tuple[list[LayerCost], int, int], data: st.DataObject) -> None:
    costs, other, tail = chain
    choices = [(names, peak_bytes(costs, other, names, tail)) for names in every_choice(costs)]
    floor = min(peak for _, peak in choices)
    budget = data.draw(st.integers(max(floor, 1), max(floor, 1) + 60))
    chosen = choose(costs, other, budget, tail)
    assert chosen.predicted_bytes == peak_bytes(costs, other, chosen.layers, tail) <= budget
    best = min((round(seconds(costs, names), 6), peak) for names, peak in choices if peak <= budget)
    assert (round(chosen.seconds, 6), chosen.predicted_bytes) == best
    if floor > 1:
        with pytest.raises(OptionError, match=rf"\({floor} bytes\)"):
            choose(costs, other, floor - 1, tail)


@settings(max_examples=10, deadline=None)
@given(chains(7, step=1_234_567))
def test_a_smaller_budget_never_counts_more(chain: tuple[list[LayerCost], int, int]) -> None:
    costs, other, tail = chain
    costs = [
        LayerCost(c.name, c.activation_bytes + int(c.name), c.input_bytes, c.seconds, c.recomputed_bytes) for c in costs
    ]
    last = float("inf")
    for tenth in range(10, 0, -1):
        try:
            chosen = choose(costs, other, tenth / 10, tail)
        except OptionError:
            return
        assert chosen.budget is not None and peak_bytes(costs, other, chosen.layers, tail) <= chosen.budget
        assert chosen.predicted_bytes <= min(last, chosen.budget)
        last = chosen.predicted_bytes


def blocks(count: int) -> list[LayerCost]:
    """Blocks whose sizes have no divisor in common, so that bytes are rounded."""
    return [LayerCost(f"b.{n}", 12_582_912 + 97 * n, 1_048_576 + n, 0.001 + n % 7 / 1e5) for n in range(count)]


def test_a_hundred_layers_are_planned_in_a_moment() -> None:
    started = time.process_time()
    chosen = choose(blocks(100), 5_000_000, 0.5)
    assert time.process_time() - started < 5
    assert chosen.budget is not None
    assert 0.99 * chosen.budget < peak_bytes(chosen.costs, 5_000_000, chosen.layers) <= chosen.predicted_bytes
    assert chosen.predicted_bytes <= chosen.budget
    assert 50 <= len(chosen.layers) < 60


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
