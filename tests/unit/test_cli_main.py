"""The group of commands: its help, its errors."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from farandole.adapters import DataError
from farandole.cli.lazy import LazyCommand, LazyGroup
from farandole.cli.main import COMMANDS, main


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    for name, command in COMMANDS.items():
        assert f"  {name:<10}  {command.summary}\n" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_each_summary_is_what_the_command_says_of_itself(name: str) -> None:
    assert (COMMANDS[name].load().help or "").splitlines()[0] == COMMANDS[name].summary


def test_an_unknown_command_suggests_the_nearest() -> None:
    result = CliRunner().invoke(main, ["strategy"])
    assert result.exit_code == 2
    assert "There is no command 'strategy'. Did you mean 'strategies'?" in result.stderr


def test_version() -> None:
    result = CliRunner().invoke(main, ["--version"], prog_name="farandole")
    assert result.exit_code == 0
    assert result.output.startswith("farandole 0.")


@click.command()
@click.option("--kind")
def fails(kind: str) -> None:
    raise DataError("the dataset is empty: give it samples") if kind == "ours" else KeyError("theirs")


GROUP = LazyGroup(
    "group", lazy={"fails": LazyCommand(f"{__name__}:fails", ""), "broken": LazyCommand(".no_such_module:x", "")}
)


def test_our_errors_end_in_a_message() -> None:
    result = CliRunner().invoke(GROUP, ["fails", "--kind", "ours"])
    assert (result.exit_code, result.stderr) == (1, "Error: the dataset is empty: give it samples\n")


def test_other_errors_keep_their_traceback() -> None:
    assert isinstance(CliRunner().invoke(GROUP, ["fails", "--kind", "other"]).exception, KeyError)


def test_a_command_that_cannot_be_loaded_breaks_itself_only() -> None:
    result = CliRunner().invoke(GROUP, ["broken"])
    assert result.exit_code == 1
    assert "`group broken` cannot be loaded: No module named" in result.stderr
    assert CliRunner().invoke(GROUP, ["--help"]).exit_code == 0
