"""Nested structures, and pending numbers."""

from __future__ import annotations

import math
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest

from farandole.adapters.pending import Pending
from farandole.adapters.structure import map_structure


class Pair(NamedTuple):
    left: Any
    right: Any


class Bag(Mapping[str, Any]):
    """A mapping that cannot be built from another mapping."""

    def __init__(self, *, a: Any, b: Any) -> None:
        self._items = {"a": a, "b": b}

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


@pytest.mark.parametrize(
    ("structure", "doubled"),
    [
        (3, 6),
        ([1, 2], [2, 4]),
        ((1, 2), (2, 4)),
        ({"a": 1, "b": [2, (3,)]}, {"a": 2, "b": [4, (6,)]}),
        (Pair(1, {"x": 2}), Pair(2, {"x": 4})),
        (OrderedDict(b=1, a=2), OrderedDict(b=2, a=4)),
        (MappingProxyType({"a": 1}), MappingProxyType({"a": 2})),
        ({1: 1, None: 2}, {1: 2, None: 4}),
        ([], []),
        ({}, {}),
        ((), ()),
        ("ab", "abab"),
        (b"ab", b"abab"),
    ],
)
def test_leaves_change_and_the_structure_stays(structure: Any, doubled: Any) -> None:
    mapped = map_structure(lambda leaf: leaf * 2, structure)
    assert mapped == doubled
    assert type(mapped) is type(doubled)


@pytest.mark.parametrize("mapping", [defaultdict(list, a=1, b=2), Bag(a=1, b=2)])
def test_a_mapping_that_cannot_be_rebuilt_becomes_a_dict(mapping: Mapping[str, int]) -> None:
    assert dict(map_structure(lambda leaf: leaf * 2, mapping)) == {"a": 2, "b": 4}


def test_leaves_are_visited_once_each_in_the_order_in_which_they_stand() -> None:
    seen: list[int] = []
    map_structure(seen.append, {"z": 1, "a": [2, Pair(3, (4, {"y": 5}))], "b": 6})
    assert seen == [1, 2, 3, 4, 5, 6]


def test_none_is_a_leaf() -> None:
    assert map_structure(lambda leaf: leaf is None, [None, 1]) == [True, False]


def pending(value: float) -> Pending:
    return Pending(lambda: value)


class Reduction:
    """A reduction that counts its waits."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.waits = 0

    def __call__(self) -> float:
        self.waits += 1
        return self.value


def test_a_number_that_nobody_reads_is_not_waited_for() -> None:
    reduction = Reduction(1.0)
    Pending(reduction)
    assert reduction.waits == 0


def test_a_number_is_waited_for_once() -> None:
    reduction = Reduction(1.5)
    number = Pending(reduction)
    assert [number.item(), float(number), number + 0, repr(number)] == [1.5, 1.5, 1.5, "1.5"]
    assert reduction.waits == 1


def test_a_wait_that_fails_can_be_tried_again() -> None:
    answers = iter([False, True])

    def read() -> float:
        if not next(answers):
            raise ConnectionError("no answer")
        return 2.0

    number = Pending(read)
    with pytest.raises(ConnectionError):
        float(number)
    assert float(number) == 2.0


@pytest.mark.parametrize(
    ("computed", "expected"),
    [
        (lambda x: x + 1, 3.5),
        (lambda x: 1 + x, 3.5),
        (lambda x: x - 1, 1.5),
        (lambda x: 1 - x, -1.5),
        (lambda x: x * 4, 10.0),
        (lambda x: 4 * x, 10.0),
        (lambda x: x / 2, 1.25),
        (lambda x: 5 / x, 2.0),
        (lambda x: -x, -2.5),
        (lambda x: abs(-1 * x), 2.5),
        (lambda x: abs(pending(-2.5)), 2.5),
        (lambda x: x + pending(1.0), 3.5),
        (lambda x: x - pending(1.0), 1.5),
        (lambda x: x * pending(2.0), 5.0),
        (lambda x: x / pending(5.0), 0.5),
        (lambda x: sum([x, x]), 5.0),
        (lambda x: max(x, pending(3.0)).item(), 3.0),
        (lambda x: min([x, pending(3.0)]).item(), 2.5),
        (lambda x: math.sqrt(x * 10), 5.0),
    ],
)
def test_arithmetic_is_that_of_the_number(computed: Callable[[Pending], Any], expected: float) -> None:
    result = computed(pending(2.5))
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"{pending(1.23456):.3f}", "1.235"),
        (f"{pending(1.5)}", "1.5"),
        (f"{pending(1.5):>6}", "   1.5"),
        (str(pending(1.5)), "1.5"),
        (repr([pending(1.5)]), "[1.5]"),
    ],
)
def test_it_prints_as_the_number(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.parametrize("wrap", [float, pending], ids=["a float", "another that is pending"])
@pytest.mark.parametrize("compare", [operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
@pytest.mark.parametrize("other", [1.0, 2.0, 3.0])
def test_it_compares_as_the_number(
    compare: Callable[[Any, Any], Any], other: float, wrap: Callable[[float], Any]
) -> None:
    assert compare(pending(2.0), wrap(other)) is compare(2.0, other)
    assert compare(wrap(other), pending(2.0)) is compare(other, 2.0)


def test_it_equals_nothing_that_is_no_number() -> None:
    assert pending(1.0) != "1.0"
    assert pending(1.0) != None  # noqa: E711


def test_it_is_true_and_hashes_as_the_number() -> None:
    assert (bool(pending(0.0)), bool(pending(0.1))) == (False, True)
    assert {pending(1.5): "a"}[1.5] == "a"


def test_not_a_number_is_none() -> None:
    number = pending(math.nan)
    assert math.isnan(number)
    assert number != number
