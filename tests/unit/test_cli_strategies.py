"""`farandole strategies`."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner, Result

from farandole.adapters.registry import BUILT_IN, Requirement, StrategyRow, strategy_rows
from farandole.cli import strategies as module
from farandole.cli.main import main


def strategies(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["strategies", *arguments])


def test_every_row_is_listed() -> None:
    result = strategies("--json")
    assert result.exit_code == 0
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert list(rows) == list(strategy_rows())
    assert rows["ddp"]["launcher"] == "torchrun"
    assert rows["ddp"]["framework"] == "torch"
    assert rows["local"]["launcher"] is None
    table = strategies().stdout
    assert all(name in table and row["description"] in table for name, row in rows.items())


def test_what_is_not_installed_is_listed_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = Requirement("no-such", "no_such.engine", "pip install 'farandole[no-such]'")
    row = StrategyRow("absent", ".x:X", "never there", requirements=(needs,))
    monkeypatch.setattr(module, "strategy_rows", lambda: {"absent": row})
    [found] = json.loads(strategies("--json").stdout)
    assert (found["installed"], found["fix"]) == (False, needs.fix)
    assert f"absent: needs no-such, which is not installed. Fix it with: {needs.fix}" in strategies().stdout


def test_the_options_of_one() -> None:
    described = json.loads(strategies("ddp", "--json").stdout)
    options = {option["name"]: option for option in described["options"]}
    assert options["comm_hook"]["default"] == "none"
    assert "powersgd" in options["comm_hook"]["type"]
    assert options["timeout"]["meaning"].startswith("seconds that joining"), "what a base class documents"
    assert described["about"].startswith("Every worker has the whole model") and "Args" not in described["about"]
    assert described["capabilities"]["framework"] == "torch"
    assert described["capabilities"]["exact"] is True
    shown = strategies("ddp").stdout
    assert all(name in shown for name in options)
    assert 'create_strategy("ddp", ' in shown
    assert "It needs torch. Start it: farandole run --strategy ddp -n 2 train.py, which calls torchrun" in shown


@pytest.mark.parametrize("name", [row.name for row in BUILT_IN if row.framework == "torch"])
def test_each_says_when_to_take_it_and_what_its_options_do(name: str) -> None:
    described = json.loads(strategies(name, "--json").stdout)
    assert re.search(r"\b(Use|Try) (it|the lowest)", described["about"])
    assert [option["name"] for option in described["options"] if not option["meaning"]] == []
    assert "see `" not in json.dumps(described), "no other class is at hand"


def test_the_options_are_shown_where_no_worker_could_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")  # without WORLD_SIZE
    result = strategies("ddp")
    assert result.exit_code == 0
    assert "comm_hook" in result.stdout
    assert json.loads(strategies("ddp", "--json").stdout)["capabilities"] is None


def test_an_unknown_name_suggests_the_nearest() -> None:
    result = strategies("horovd")
    assert (result.exit_code, "Did you mean 'horovod'?" in result.stderr) == (1, True)
