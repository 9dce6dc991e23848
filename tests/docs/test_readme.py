"""The README is true: its programs run as written, its commands parse, and its tables agree with the code."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt
from markdown_it.token import Token

from farandole.adapters import create_strategy, detect_launch, strategy_row, strategy_rows
from farandole.adapters.launch.start import find_launcher
from farandole.adapters.registry import ENTRY_POINT_GROUP
from farandole.cli.main import main
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.gradient_checkpointing import GradientCheckpointing
from farandole.plugins.launch.installed import package, problem
from farandole.plugins.launch.job import JobResult, run_marked
from farandole.plugins.metrics import WorkerMetrics
from farandole.plugins.metrics.sinks import ENTRY_POINT_GROUP as SINKS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
TOKENS = MarkdownIt("commonmark").enable("table").parse(README)
FARANDOLE = [sys.executable, "-m", "farandole.cli.main"]
TOY = (ROOT / "tests/plugins/toy_strategy.py").read_text()

HOROVOD_IS_MISSING = package("horovod") is None


def fences(language: str) -> list[str]:
    return [token.content for token in TOKENS if token.type == "fence" and token.info == language]


def commands() -> list[str]:
    """Every command of ours in a block of shell."""
    return [line for block in fences("bash") for line in block.splitlines() if line.startswith("farandole ")]


def programs() -> dict[str, str]:
    """Every Python block by the file name in its first line."""
    return {block.splitlines()[0].removeprefix("# "): block for block in fences("python")}


def inline(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def code_spans(token: Token) -> list[str]:
    return [child.content for child in token.children or [] if child.type == "code_inline"]


@cache
def table(first_heading: str, second_heading: str) -> list[list[Token]]:
    """The body of the one table with these first headings, as the cells of each row."""
    rows: list[list[Token]] = []
    for token in TOKENS:
        if token.type == "table_open":
            rows.append([])
            cells: list[list[Token]] = []
        elif token.type == "tr_open":
            cells.append([])
        elif token.type == "inline" and token.level == 4:
            cells[-1].append(token)
        elif token.type == "table_close" and [inline(cell) for cell in cells[0][:2]] == [first_heading, second_heading]:
            return cells[1:]
    raise LookupError(f"the README has no table that begins with {first_heading} | {second_heading}")


# The two commands.


def test_both_commands_set_up_one_environment() -> None:
    lines = [line for block in fences("bash") for line in block.splitlines() if line.startswith("python3 ")]
    assert len(lines) == 2
    set_up = "python3 -m venv .venv && .venv/bin/pip install -q tox && .venv/bin/tox -e full"
    assert [line.removeprefix(set_up) for line in lines] == [" -- farandole experiment compare --workers 2", ""]


def test_ci_finds_the_test_command() -> None:
    extract = next(line for line in (ROOT / ".ci/run").read_text().splitlines() if line.startswith("command="))
    found = subprocess.run(["bash", "-c", f'{extract}; echo "$command"'], cwd=ROOT, capture_output=True, text=True)
    assert found.stdout.endswith("tox -e full\n") and found.stdout.count("\n") == 1


# Programs.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's programs, and the other files in its commands."""
    folder = tmp_path_factory.mktemp("readme")
    for name, text in programs().items():
        (folder / name).write_text(text)
    (folder / "mypackage").mkdir()
    (folder / "mypackage/__init__.py").touch()
    return folder


def run(folder: Path, *command: str, waits: int = 0) -> dict[int, float]:
    """Run a job in `folder` and return the loss of each epoch that it printed; `waits` workers print their wait."""
    with contextlib.chdir(folder):
        return losses(run_marked(command, timeout=60), waits)


def run_up(servers: WorkerServers, folder: Path, line: str, waits: int = 0) -> dict[int, float]:
    """As `run`, in shared workers, what `farandole run` would start."""
    asked = command_of(line).params
    with contextlib.chdir(folder):
        job = servers.run_program(asked["strategy"], asked["workers"] or 1, asked["program"], timeout=60)
        return losses(job, waits)


def losses(job: JobResult, waits: int) -> dict[int, float]:
    assert job.returncode == 0 and not job.survivors, job.describe()
    assert len(re.findall(r"waited \d+\.\d{3} s for data", job.output)) == waits, job.describe()
    return {int(epoch): float(loss) for epoch, loss in re.findall(r"epoch (\d+): loss ([\d.]+)", job.output)}


def plug_in(folder: Path, name: str) -> None:
    """Add callbacks to a program, as the README says, one after the other."""
    lines = programs()[name].splitlines()
    for patch in (block for block in fences("diff") if block.startswith(f" # {name}\n")):
        place = 0
        for change in patch.splitlines():
            if change.startswith("+"):
                lines.insert(place, change[1:])
                place += 1
            else:
                place = lines.index(change[1:], place) + (change[0] == " ")
                if change.startswith("-"):
                    del lines[place]
    (folder / name).write_text("\n".join(lines))


def test_programs_are_all_run_here() -> None:
    run_here = {"train.py", "waits.py", "sqlite_sink.py", "lightning_train.py", "fit.py", "test_mine.py"}
    assert set(programs()) == run_here


@pytest.mark.skipif(HOROVOD_IS_MISSING, reason="Horovod is not installed")
@pytest.mark.timeout(120)
def test_loop_as_written(folder: Path) -> None:
    """The commands below the loop: by `local`, by `ddp`, and resumed by `horovod`, there with checkpointed layers."""
    block = next(block for block in fences("bash") if "--resume" in block)
    *lines, last = (FARANDOLE + shlex.split(line)[1:] for line in block.splitlines())
    local, ddp = (run(folder, *line) for line in lines)
    plug_in(folder, "train.py")
    resumed = run(folder, *last)
    assert list(local) == [1, 2, 3, 4, 5, 6]
    assert list(ddp) == [1, 2, 3]
    assert list(resumed) == [4, 5, 6]
    assert ddp | resumed == pytest.approx(local, abs=1e-5)
    assert local[6] < local[1] / 10


@pytest.mark.timeout(60)
def test_callback_as_written(folder: Path, worker_servers: WorkerServers) -> None:
    line = next(line for line in commands() if "waits.py" in line)
    run_up(worker_servers, folder, line, waits=2)


@pytest.mark.skipif(HOROVOD_IS_MISSING or package("tensorflow") is None, reason="an engine is not installed")
@pytest.mark.timeout(200)
def test_fit_as_written(folder: Path, worker_servers: WorkerServers) -> None:
    """The commands below `fit`: one process, and two engines at two numbers of workers, the last with callbacks."""
    block = next(block for block in fences("bash") if "fit.py" in block)
    *lines, last = block.splitlines()
    alone, two = (run_up(worker_servers, folder, line) for line in lines)
    plug_in(folder, "fit.py")
    three = run_up(worker_servers, folder, last, waits=3)
    assert list(alone) == [1, 2, 3]
    assert two == pytest.approx(alone, abs=1e-5)
    assert three == pytest.approx(alone, abs=1e-5)


@pytest.mark.skipif(HOROVOD_IS_MISSING or package("lightning") is None, reason="Horovod or Lightning is not installed")
@pytest.mark.timeout(200)
def test_trainer_as_written(folder: Path, worker_servers: WorkerServers) -> None:
    """The commands below the Trainer: it starts its own workers, and two launchers do, the last with callbacks."""
    block = next(block for block in fences("bash") if "python lightning_train.py" in block)
    own = {"python": [sys.executable], "horovodrun": [find_launcher("horovodrun")]}
    *lines, last = block.splitlines()
    commands = [[part for word in shlex.split(line) for part in own.get(word, [word])] for line in lines]
    alone, by_horovodrun = (run(folder, *command) for command in commands)
    plug_in(folder, "lightning_train.py")
    by_us = run_up(worker_servers, folder, last, waits=2)
    assert list(alone) == [1, 2, 3]
    assert by_horovodrun == pytest.approx(alone, abs=1e-5)
    assert by_us == pytest.approx(alone, abs=1e-5)


def entry_points_of(group: str) -> dict[str, str]:
    """The entry points of a group in the one block that has it."""
    blocks = [tomllib.loads(block)["project"]["entry-points"] for block in fences("toml")]
    (found,) = (block[group] for block in blocks if group in block)
    return found


@pytest.mark.timeout(60)
def test_sink_of_your_own(
    make_distribution: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its name, and writes what a training measures and logs."""
    import torch

    ((name, target),) = entry_points_of(SINKS).items()
    module, _, made = target.partition(":")
    site = make_distribution(module, programs()[f"{module}.py"], {name: made}, group=SINKS)
    monkeypatch.syspath_prepend(str(site))
    with create_strategy("local", device="cpu") as strategy, strategy.scope():
        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        metrics = WorkerMetrics(tmp_path / "run", sinks=[name])
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), callbacks=[metrics])
        for batch in training.batches(torch.ones(64, 4), global_batch_size=16, epochs=5):
            training.log("twice", 2 * training.progress.step)
            training.step(batch)
    database = sqlite3.connect(tmp_path / "run" / "worker-0.db")
    names = {row[0] for row in database.execute("SELECT DISTINCT name FROM measured")}
    database.close()
    assert {"step_ms", "loss", "twice"} <= names


@pytest.mark.timeout(60)
def test_strategy_of_your_own(make_distribution: Callable[..., Path], folder: Path) -> None:
    (row,) = entry_points_of(ENTRY_POINT_GROUP)
    site = make_distribution("toy", TOY, {row: "ToyStrategy"})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "test_mine.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert row == "mine"
    assert all(f"TestMine::test_job_ends_cleanly[{workers}]" in done.stdout for workers in (1, 2, 3))


# Commands.


@pytest.mark.parametrize("line", commands())
def test_command_parses(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    command_of(line)


def command_of(line: str) -> click.Context:
    """Parse a command of ours."""
    words = shlex.split(line)[1:]
    command: click.Command = main
    context = click.Context(main, info_name="farandole")
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
        context = click.Context(command, info_name=name, parent=context)
    return command.make_context(command.name, words, parent=context.parent)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("line", [line for line in commands() if line.split()[1] in ("run", "strategies")])
def test_command_ends_well(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are not started here: only their command line is made."""
    if "horovod" in line and HOROVOD_IS_MISSING:
        pytest.skip("Horovod is not installed")
    monkeypatch.chdir(folder)
    words = shlex.split(line)[1:]
    if words[0] == "run" and "--dry-run" not in words:
        words.insert(1, "--dry-run")
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert result.stdout


# Tables.


def test_strategies_are_those_of_the_registry() -> None:
    launchers = {"torchrun", "horovodrun", "deepspeed", "tf_config"}
    listed = {}
    for name, _, needs, launcher in table("Strategy", "What it is"):
        assert inline(launcher) in launchers | {"python"}
        listed[inline(name)] = (code_spans(needs), inline(launcher))
    assert listed == {
        row.name: ([requirement.distribution for requirement in row.requirements], row.launcher or "python")
        for row in strategy_rows().values()
        if row.entry_point is None
    }


def listed_options() -> dict[str, dict[str, object]]:
    listed: dict[str, dict[str, object]] = {}
    for name, option, _ in table("Strategy", "Option and default"):
        option_name, _, default = inline(option).partition("=")
        listed.setdefault(inline(name), {})[option_name] = ast.literal_eval(default)
    return listed


@pytest.mark.parametrize("name", [row.name for row in strategy_rows().values() if row.entry_point is None])
def test_options_and_defaults_are_those_of_the_strategy(name: str) -> None:
    row = strategy_row(name)
    if any(problem(requirement) for requirement in row.requirements):
        pytest.skip("its engine is not installed")
    parameters = inspect.signature(row.load()).parameters
    actual = {option: parameter.default for option, parameter in parameters.items() if option not in row.options}
    (listed,) = (options for pattern, options in listed_options().items() if fnmatch(name, pattern))
    assert listed == actual


def test_options_of_gradient_checkpointing_are_those_of_the_callback() -> None:
    listed = dict(inline(row[0]).split("=", 1) for row in table("Option of GradientCheckpointing", "What it does"))
    parameters = inspect.signature(GradientCheckpointing).parameters
    assert {name: ast.literal_eval(default) for name, default in listed.items()} == {
        name: parameter.default for name, parameter in parameters.items()
    }


def launches() -> list[tuple[str, dict[str, str]]]:
    """Each launcher with the variables of its row, for a job of one worker."""
    cluster = json.dumps({"cluster": {"worker": ["localhost:2222"]}, "task": {"type": "worker", "index": 0}})
    found = []
    for name, _, variables, _, _ in table("Launcher", "For example"):
        counts = {variable: "1" if re.search("SIZE|TASKS", variable) else "0" for variable in code_spans(variables)}
        found.append((inline(name), counts | ({"TF_CONFIG": cluster} if "TF_CONFIG" in counts else {})))
    return found


@pytest.mark.parametrize(("launcher", "environ"), launches())
def test_launcher_is_read_from_the_variables_of_its_row(launcher: str, environ: dict[str, str]) -> None:
    launch = detect_launch(environ)
    assert launch.launcher == launcher
    assert (launch.worker.rank, launch.worker.world_size) == (0, 1)


@pytest.mark.parametrize("words", [inline(row[0]) for row in table("The message says", "What to do")])
def test_quoted_messages_are_in_the_code(words: str) -> None:
    sources = (path for folder in ("adapters", "plugins", "cli") for path in (ROOT / folder).rglob("*.py"))
    assert any(words in path.read_text() for path in sources)


def test_links_lead_somewhere() -> None:
    targets = [
        str(child.attrs["href"]) for token in TOKENS for child in token.children or [] if child.type == "link_open"
    ]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []
