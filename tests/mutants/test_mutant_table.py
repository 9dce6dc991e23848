"""The faults of the table still fit the code."""

from __future__ import annotations

from pathlib import Path

from mutant_table import MUTANTS

ROOT = Path(__file__).parents[2]


def test_each_fault_still_finds_its_place() -> None:
    places = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS}
    assert {name: number for name, number in places.items() if number != 1} == {}
    assert len(places) == len(MUTANTS) >= 25


def test_the_tests_that_come_first_are_there() -> None:
    assert [mutant.tests[0] for mutant in MUTANTS if not (ROOT / mutant.tests[0]).exists()] == []
