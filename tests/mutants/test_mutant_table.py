"""The faults of the table still fit the code, and CONTRIBUTING.md lists them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from mutant_table import MUTANTS

ROOT = Path(__file__).parents[2]


def test_each_fault_still_finds_its_place() -> None:
    places = {mutant.name: (ROOT / mutant.file).read_text().count(mutant.old) for mutant in MUTANTS}
    assert {name: number for name, number in places.items() if number != 1} == {}
    assert len(places) == len(MUTANTS) >= 25


def test_each_fault_leaves_python() -> None:
    """Every test fails on a module that cannot be imported."""
    for mutant in MUTANTS:
        ast.parse((ROOT / mutant.file).read_text().replace(mutant.old, mutant.new), mutant.name)


def test_contributors_are_told_of_each() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\w+): `(\w+)", text, re.MULTILINE)
    assert {name: file for name, file, *_ in rows} == {mutant.name: mutant.file for mutant in MUTANTS}
    for _, _, module, test in rows:
        assert any(test in path.read_text() for path in ROOT.glob(f"tests/*/test_{module}.py")), f"{module}: {test}"


def test_the_tests_that_come_first_are_there() -> None:
    assert [mutant.tests[0] for mutant in MUTANTS if not (ROOT / mutant.tests[0]).exists()] == []
