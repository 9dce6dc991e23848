"""`farandole run`: what it would execute, and what it refuses before it does."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from farandole.cli.main import main


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "evaluate.py", "odd name.py"):
        (tmp_path / name).write_text("")
    package = tmp_path / "project"
    package.mkdir()
    (package / "__init__.py").write_text("")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["run", *arguments])


def test_what_follows_the_script_is_the_scripts() -> None:
    theirs = ["--strategy", "x y", "-n", "3", "--dry-run", "--", "--help", "$HOME"]
    result = run("--strategy", "local", "--dry-run", "train.py", *theirs)
    assert result.exit_code == 0
    assert shlex.split(result.stdout)[-9:] == ["train.py", *theirs]


def test_a_module_is_run_like_a_script() -> None:
    result = run("-s", "ddp", "-n", "2", "--dry-run", "-m", "project.train", "-n", "9")
    assert shlex.split(result.stdout)[-6:] == ["--nproc-per-node", "2", "-m", "project.train", "-n", "9"]


def test_a_start_deadline_reaches_the_launcher() -> None:
    result = run("-s", "tf_multiworker", "-n", "2", "--start-deadline", "90", "--dry-run", "train.py", "-n", "9")
    assert shlex.split(result.stdout)[-7:] == ["-n", "2", "--start-deadline", "90", "train.py", "-n", "9"]


def test_workers_default_to_one_or_to_all_slots() -> None:
    assert "--nproc-per-node 1 " in run("-s", "ddp", "--dry-run", "train.py").stdout
    assert "--nproc-per-node 3 " in run("-s", "ddp", "--hosts", "localhost:3", "--dry-run", "train.py").stdout


def test_a_folder_with_a_main_module_is_a_script(folder: Path) -> None:
    (folder / "project" / "__main__.py").write_text("")
    assert run("-s", "local", "--dry-run", "project").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-s", "dpp", "train.py"], "no strategy 'dpp'. Did you mean 'ddp'?"),
        (["-s", "ddp", "-n", "0", "train.py"], "cannot start 0 workers: ask for at least one (-n 1)"),
        (["-s", "ddp", "-n", "-1", "train.py"], "cannot start -1 workers"),
        (["-s", "local", "-n", "2", "train.py"], "'local' is one process: leave out -n 2"),
        (["-s", "ddp", "--start-deadline", "9", "train.py"], "'ddp' has no start deadline: leave out"),
        (["-s", "ddp", "trian.py"], "no script trian.py in {folder}. Did you mean 'train.py'?"),
        (["-s", "ddp", "elsewhere/train.py"], "the folder elsewhere does not exist"),
        (["-s", "ddp", "project"], "project is a folder without a __main__.py"),
        (["-s", "ddp", "-m", "projekt.train"], "no module 'projekt', neither installed nor in {folder}"),
        (["-s", "ddp", "--hosts", "a,b", "train.py"], "'a' is not host:slots"),
        (["-s", "ddp", "--hosts", "a:1", "-n", "2", "train.py"], "-n 2 is more than the 1 slots"),
    ],
)
def test_what_cannot_run_is_said_in_a_line_or_two(arguments: list[str], says: str, folder: Path) -> None:
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert says.format(folder=folder) in result.stderr
    assert len(result.stderr.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["train.py"], "Missing option '-s' / '--strategy'"),
        (["-s", "ddp"], "Missing argument 'SCRIPT"),
        (["--strategi", "ddp", "train.py"], "--strategy"),
        (["-s", "ddp", "-n", "two", "train.py"], "'two' is not a valid integer"),
        (["-s", "ddp", "--port", "70000", "train.py"], "70000 is not in the range"),
        (["-s", "tf_multiworker", "--start-deadline", "0", "train.py"], "0.0 is not in the range"),
    ],
)
def test_a_wrong_call_is_a_usage_error(arguments: list[str], says: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert says in result.stderr
