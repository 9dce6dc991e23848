"""`farandole run` in real processes: the exit codes, Ctrl-C and orphans of the engines' own launchers."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters import OptionError
from farandole.adapters.launch.start import script_folders
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.installed import package
from farandole.plugins.launch.job import JobResult, Marked, run_marked

PROGRAM = Path(__file__).with_name("fault_program.py")
FARANDOLE = [sys.executable, "-m", "farandole.cli.main"]
BOUND = 15.0  # seconds from a failure to the end of the job
ENGINES = {"ddp": "torch", "horovod": "horovod", "tf_multiworker": "tensorflow"}


def on_engines(*default: tuple[str, ...], others: Iterable[tuple[str, ...]] = ()) -> list[Any]:
    """Return parameters, of which the first is a strategy; `others` are for the exhaustive size."""
    marked = [(values, []) for values in default]
    marked += [(values, [pytest.mark.exhaustive]) for values in others if values not in default]
    return [
        pytest.param(*values, marks=[*marks, pytest.mark.skipif(package(engine) is None, reason=f"no {engine}")])
        for values, marks in marked
        for engine in [ENGINES[values[0]]]
    ]


class Run:
    """A job of two workers; a disturbance comes once both have met."""

    def __init__(self, strategy: str, fault: str, *arguments: str, disturb: Callable[[Marked], object] | None = None):
        self.ready: list[dict[str, object]] = []
        self._met = threading.Event()
        self._met_at = 0.0
        self._disturb = disturb
        started = time.monotonic()
        argv = [*FARANDOLE, "run", "--strategy", strategy, "-n", "2", str(PROGRAM), strategy, fault, *arguments]
        self.result: JobResult = run_marked(argv, timeout=100, on_line=self._line, during=self._during)
        assert self._met.is_set(), self.result.describe()
        self.seconds_after = started + self.result.seconds - self._met_at

    def _line(self, line: str) -> None:
        for text in line.split("READY ")[1:]:
            self.ready.append(json.JSONDecoder().raw_decode(text)[0])
        if len(self.ready) == 2 and not self._met.is_set():
            self._met_at = time.monotonic()
            self._met.set()

    def _during(self, job: Marked) -> None:
        if self._disturb is not None and self._met.wait(80):
            time.sleep(0.5)  # let worker 0 enter its collective
            self._met_at = time.monotonic()
            self._disturb(job)


def interrupt(job: Marked) -> None:
    """Send SIGINT as a terminal does at Ctrl-C."""
    os.killpg(job.launcher, signal.SIGINT)


def nothing_is_left(run: Run) -> None:
    assert not run.result.timed_out, run.result.describe()
    assert run.result.survivors == (), run.result.describe()


def all_are_told(run: Run, strategy: str, fault: str, arguments: list[str]) -> None:
    """Check the command, and the ranks that the workers print."""
    assert sorted((told["rank"], told["size"]) for told in run.ready) == [(0, 2), (1, 2)]
    assert all(told["arguments"] == arguments for told in run.ready)
    assert f"{PROGRAM} {strategy} {fault} 'a b' --" in run.result.output.splitlines()[0]  # the printed command


ARGUMENTS = ["a b", "--", "-n", "3", "--strategy", "x", "$HOME $$ ${local_rank}", "it's"]


# By default, the README's programs succeed, and the arguments are told below.
@pytest.mark.timeout(120)
@pytest.mark.parametrize("strategy", on_engines(others=[(name,) for name in ENGINES]))
def test_a_script_that_succeeds(strategy: str) -> None:
    run = Run(strategy, "none", *ARGUMENTS)
    assert run.result.returncode == 0, run.result.describe()
    nothing_is_left(run)
    all_are_told(run, strategy, "none", ARGUMENTS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("strategy", "fault"),
    on_engines(
        ("ddp", "raise"),
        ("horovod", "kill"),
        ("tf_multiworker", "exit"),
        others=itertools.product(ENGINES, ["raise", "exit", "kill"]),
    ),
)
def test_a_worker_that_fails_ends_the_job(strategy: str, fault: str) -> None:
    run = Run(strategy, fault, *ARGUMENTS)
    assert run.result.returncode > 0, run.result.describe()
    assert run.seconds_after < BOUND
    nothing_is_left(run)
    all_are_told(run, strategy, fault, ARGUMENTS)
    if fault == "raise":
        *_, raised, last = run.result.output.splitlines()
        assert raised == "ValueError: the mistake in the script", run.result.describe()
        assert re.search(rf"^farandole: worker 1 of 2 failed at .*{PROGRAM.name}:\d+: {raised}$", last)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("strategy", on_engines(("ddp",), ("horovod",), others=[("tf_multiworker",)]))
def test_control_c_ends_the_job_even_where_workers_do_not_listen(strategy: str) -> None:
    run = Run(strategy, "deaf", disturb=interrupt)
    assert run.result.returncode == 130, run.result.describe()
    assert run.seconds_after < BOUND
    nothing_is_left(run)


@pytest.mark.timeout(30)
def test_one_process_is_pythons_and_its_exit_code_too(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import os, sys; print(os.getppid()); sys.exit(int(sys.argv[1]))")
    started = subprocess.Popen(
        [*FARANDOLE, "run", "-s", "local", "script.py", "3"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    output, _ = started.communicate(timeout=25)
    assert output.split() == [str(started.pid)]
    assert started.returncode == 3


@pytest.mark.timeout(120)
def test_the_lines_for_several_hosts_start_one_job(free_ports: Callable[[int], list[int]]) -> None:
    """Two addresses of this machine stand for two hosts."""
    (port,) = free_ports(1)
    program = ["-m", PROGRAM.stem, "ddp", "none", "a b"]
    with pytest.raises(OptionError) as raised:
        launch_command("ddp", 2, program, hosts="127.0.0.2:1,127.0.0.3:1", port=port)
    lines = [line.split(": ", 1)[1] for line in str(raised.value).splitlines()[1:]]
    env = {**os.environ, "PATH": os.pathsep.join(map(str, [*script_folders(), os.environ["PATH"]]))}
    started = [
        subprocess.Popen(shlex.split(line), cwd=PROGRAM.parent, env=env, stdout=subprocess.PIPE, text=True)
        for line in lines
    ]
    try:
        outputs = [process.communicate(timeout=100)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0]
    told = [json.loads(output.split("READY ")[1]) for output in outputs]
    assert [(one["rank"], one["size"], one["arguments"]) for one in told] == [(0, 2, ["a b"]), (1, 2, ["a b"])]


@pytest.mark.timeout(30)
def test_the_command_line_imports_no_framework() -> None:
    heavy = ["torch", "tensorflow", "horovod", "deepspeed", "numpy", "sklearn", "rich", "farandole.adapters"]
    code = (
        "import sys\nfrom farandole.cli.main import main\nmain(['--help'], standalone_mode=False)\n"
        f"print('LOADED', [name for name in {heavy} if name in sys.modules])"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=25, check=True)
    after = os.times()
    assert done.stdout.endswith("LOADED []\n"), done.stdout
    # Processor time: wall time depends on what else this machine does.
    seconds = after.children_user + after.children_system - before.children_user - before.children_system
    assert seconds < 0.3, f"`farandole --help` took {seconds:.2f} s of the processor"
