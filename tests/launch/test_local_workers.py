"""The launcher of workers with a TF_CONFIG, in real processes; TensorFlow itself is not needed for it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.launch.tf_config import START_DEADLINE_VARIABLE
from farandole.adapters.leaving import leave_timeout
from farandole.plugins.launch.job import JobResult, Marked, run_marked

LAUNCHER = [sys.executable, "-P", "-m", "farandole.plugins.launch.local_workers"]
# Its patience, in seconds: a worker may be saving.
REST, GRACE, STOPPED, LOOK = 3.0, leave_timeout() + 3, 5.0, 0.5
SOON = 3.0
IMPATIENT = 1.0, 3.0, 1.5, 0.1  # enough if a test waits until its end
# What each worker of each test starts with.
PROGRAM = """
import json, os, signal, subprocess, sys, time
task = json.loads(os.environ["TF_CONFIG"])["task"]
told = {
    "pid": os.getpid(), "session": os.getsid(0), "arguments": sys.argv[1:], "stdin": sys.stdin.read(),
    "config": json.loads(os.environ["TF_CONFIG"]), "deadline": os.environ["FARANDOLE_START_DEADLINE"],
}
child = []
if WITH_CHILD:
    child = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])]
index = task["index"]
BEFORE_READY
os.write(1, f"READY {json.dumps(told)}\\n".encode())
"""
# In short sleeps: a signal just before a sleep begins is handled only after it.
WAIT = "while True: time.sleep(0.1)"
DEAF = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)"

pytestmark = pytest.mark.timeout(60)


def launcher(patience: tuple[float, float, float, float]) -> list[str]:
    """Return how the launcher is started, with this patience."""
    lines = ["from farandole.plugins.launch import local_workers as it"]
    lines += [f"assert (it._REST, it._GRACE, it._STOPPED, it._LOOK) == {(REST, GRACE, STOPPED, LOOK)}"]
    lines += [f"it._REST, it._GRACE, it._STOPPED, it._LOOK = {patience}", "it.main()"]
    return [sys.executable, "-P", "-c", "\n".join(lines)]


class Run:
    """A job of workers that run `first`, report that they are ready and run `code`; a disturbance comes after that."""

    def __init__(
        self,
        folder: Path,
        code: str,
        *arguments: str,
        first: str = "",
        workers: int = 2,
        options: tuple[str, ...] = (),
        children: bool = False,
        env: dict[str, str] | None = None,
        disturb: Callable[[Marked, list[dict[str, Any]]], object] | None = None,
        impatient: bool = False,
    ) -> None:
        self._workers, self._disturb = workers, disturb
        self._told: list[dict[str, Any]] = []
        self._met = threading.Event()
        self._met_at = 0.0
        script = folder / "a script.py"
        script.write_text(PROGRAM.replace("WITH_CHILD", str(children)).replace("BEFORE_READY", first) + code)
        started = time.monotonic()
        start = launcher(IMPATIENT) if impatient else LAUNCHER
        argv = [*start, "-n", str(workers), *options, str(script), *arguments]
        self.result: JobResult = run_marked(argv, timeout=40, env=env, on_line=self._line, during=self._during)
        assert self._met.is_set(), self.result.describe()
        assert not self.result.timed_out, self.result.describe()
        assert self.result.survivors == (), self.result.describe()
        self.seconds_after = started + self.result.seconds - self._met_at
        self.told = sorted(self._told, key=index_of)
        self.said = [line for line in self.result.output.splitlines() if line.startswith("farandole: ")]

    def _line(self, line: str) -> None:
        if line.startswith("READY "):
            self._told.append(json.loads(line.removeprefix("READY ")))
        if len(self._told) == self._workers and not self._met.is_set():
            self._met_at = time.monotonic()
            self._met.set()

    def _during(self, job: Marked) -> None:
        if self._disturb is not None and self._met.wait(30):
            self._met_at = time.monotonic()
            self._disturb(job, sorted(self._told, key=index_of))


def index_of(told: dict[str, Any]) -> int:
    index: int = told["config"]["task"]["index"]
    return index


def to_worker(index: int, number: int) -> Callable[[Marked, list[dict[str, Any]]], None]:
    return lambda job, told: os.kill(told[index]["pid"], number)


def to_launcher(number: int) -> Callable[[Marked, list[dict[str, Any]]], None]:
    """As a terminal does at Ctrl-C: the launcher is alone in its process group."""
    return lambda job, told: os.killpg(job.launcher, number)


def test_each_worker_is_told_of_all_and_of_itself(tmp_path: Path) -> None:
    arguments = ["a b", "--", "-n", "3", "--port", "1", "-m", "$HOME ${x}", "it's", ""]
    run = Run(tmp_path, "", *arguments, workers=3)
    assert run.result.returncode == 0, run.result.describe()
    assert run.said == []
    addresses = run.told[0]["config"]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    for index, told in enumerate(run.told):
        assert told["config"] == {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        assert told["arguments"] == arguments
        assert told["session"] == told["pid"]
        assert (told["stdin"], told["deadline"]) == ("", "60")
    for address in addresses:
        host, port = address.split(":")
        socket.create_server((host, int(port))).close()


def test_ports_follow_the_one_that_is_asked_for(tmp_path: Path, free_ports: Callable[[int], list[int]]) -> None:
    port = next(port for port in free_ports(50) if is_free(port + 1))
    run = Run(tmp_path, "", options=("--port", str(port), "--start-deadline", "7.5"))
    assert run.told[0]["config"]["cluster"]["worker"] == [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    assert run.told[1]["deadline"] == "7.5"


def is_free(port: int) -> bool:
    try:
        socket.create_server(("", port)).close()
    except OSError:
        return False
    return True


def test_a_busy_port_starts_nothing(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        argv = [*LAUNCHER, "-n", "2", "--port", str(port - 1), "-m", "this_is_never_started"]
        result = run_marked(argv, timeout=20)
    assert result.returncode == 1
    assert f"port {port} is in use by" in result.output or f"port {port - 1} is in use" in result.output
    assert "never_started" not in result.output


def test_the_deadline_of_the_environment_holds_where_none_is_given(tmp_path: Path) -> None:
    assert [told["deadline"] for told in Run(tmp_path, "", env={START_DEADLINE_VARIABLE: "12"}).told] == ["12", "12"]


def test_a_module_is_run_from_the_folder_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train.py").write_text("import sys; print('ARGUMENTS', sys.argv[1:], flush=True)")
    (tmp_path / "click.py").write_text("raise AssertionError('the launcher took it for a package of its own')")
    monkeypatch.chdir(tmp_path)
    result = run_marked([*LAUNCHER, "-n", "1", "-m", "train", "-m", "x"], timeout=20)
    assert (result.returncode, result.output) == (0, "ARGUMENTS ['-m', 'x']\n"), result.describe()


def test_who_succeeds_first_is_no_reason_to_end(tmp_path: Path) -> None:
    run = Run(tmp_path, "time.sleep(index); os.write(1, b'DONE\\n')")
    assert (run.result.returncode, run.said) == (0, []), run.result.describe()
    assert run.result.output.count("DONE") == 2


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("sys.exit(3)", 3, "ended with exit code 3"),
        ("raise ValueError('the mistake')", 1, "ended with exit code 1"),
        pytest.param("os.abort()", 134, "was killed by SIGABRT", marks=pytest.mark.exhaustive),
        ("os.kill(os.getpid(), 40)", 168, "was killed by signal 40"),
    ],
)
def test_a_worker_that_fails_is_named_and_ends_the_job(tmp_path: Path, fault: str, code: int, said: str) -> None:
    run = Run(tmp_path, f"if index == 1: time.sleep(0.5); {fault}\n{WAIT}", workers=3, children=True)
    assert run.result.returncode == code, run.result.describe()
    assert run.said == [f"farandole: worker 1 (process {run.told[1]['pid']}) {said}; ending the others"]
    assert run.seconds_after < SOON
    assert ("ValueError: the mistake" in run.result.output) is ("ValueError" in fault)


def test_workers_are_asked_to_end_before_they_are_killed(tmp_path: Path) -> None:
    listen = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.7), os.write(1, b'SAVED\\n'), sys.exit(0)))"
    run = Run(tmp_path, f"if index == 1: time.sleep(0.5); sys.exit(3)\n{WAIT}", first=listen)
    assert run.result.returncode == 3, run.result.describe()
    assert "SAVED" in run.result.output, run.result.describe()


def test_a_worker_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    run = Run(
        tmp_path, f"if index == 0: time.sleep(0.5); sys.exit(3)\n{WAIT}", first=DEAF, children=True, impatient=True
    )
    assert run.result.returncode == 3, run.result.describe()
    assert IMPATIENT[0] < run.seconds_after < IMPATIENT[0] + 4


def test_a_worker_that_is_killed_from_outside(tmp_path: Path) -> None:
    run = Run(tmp_path, WAIT, children=True, disturb=to_worker(0, signal.SIGKILL))
    assert run.result.returncode == 137, run.result.describe()
    assert run.said == [f"farandole: worker 0 (process {run.told[0]['pid']}) was killed by SIGKILL; ending the others"]
    assert run.seconds_after < SOON


def test_a_stopped_worker_is_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path, WAIT, first=DEAF, children=True, disturb=to_worker(1, signal.SIGSTOP), impatient=True)
    assert run.result.returncode == 1, run.result.describe()
    assert len(run.said) == 1
    assert run.said[0].startswith(f"farandole: worker 1 (process {run.told[1]['pid']}) has been stopped (by SIGSTOP")
    assert IMPATIENT[2] <= run.seconds_after < IMPATIENT[2] + 4


def test_a_worker_that_is_stopped_for_a_moment_goes_on(tmp_path: Path) -> None:
    def disturb(job: Marked, told: list[dict[str, Any]]) -> None:
        for _ in range(2):  # neither pause is long enough, only both together
            os.kill(told[1]["pid"], signal.SIGSTOP)
            time.sleep(IMPATIENT[2] * 0.7)
            os.kill(told[1]["pid"], signal.SIGCONT)
            time.sleep(IMPATIENT[3] * 5)

    run = Run(tmp_path, "time.sleep(3.5)", disturb=disturb, impatient=True)
    assert (run.result.returncode, run.said) == (0, []), run.result.describe()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_to_the_launcher_is_passed_on(tmp_path: Path, number: signal.Signals, code: int) -> None:
    listen = f"signal.signal({number}, lambda *_: (os.write(1, f'TOLD {{index}}\\n'.encode()), sys.exit(0)))"
    run = Run(tmp_path, WAIT, first=listen, children=True, disturb=to_launcher(number))
    assert run.result.returncode == code, run.result.describe()
    assert {"TOLD 0", "TOLD 1"} <= set(run.result.output.splitlines()), run.result.describe()
    names = ", ".join(f"worker {index} (process {told['pid']})" for index, told in enumerate(run.told))
    assert run.said == [f"farandole: {number.name}: ending {names}"]
    assert run.seconds_after < SOON


@pytest.mark.parametrize("first", [DEAF, "signal.signal(signal.SIGINT, lambda *_: None)"])
def test_control_c_ends_the_job_even_where_workers_do_not_listen(tmp_path: Path, first: str) -> None:
    run = Run(tmp_path, WAIT, first=first, children=True, disturb=to_launcher(signal.SIGINT), impatient=True)
    assert run.result.returncode == 130, run.result.describe()
    assert IMPATIENT[0] < run.seconds_after < IMPATIENT[0] + 4


def test_a_second_control_c_does_not_wait(tmp_path: Path) -> None:
    def disturb(job: Marked, told: list[dict[str, Any]]) -> None:
        os.kill(job.launcher, signal.SIGINT)
        time.sleep(0.5)
        os.kill(job.launcher, signal.SIGINT)

    run = Run(tmp_path, WAIT, first=DEAF, disturb=disturb)
    assert run.result.returncode == 130, run.result.describe()
    assert run.seconds_after < SOON - 1


def test_a_killed_launcher_takes_its_workers_along(tmp_path: Path) -> None:
    """`Run` looks for survivors."""
    run = Run(tmp_path, WAIT, first=DEAF, disturb=to_launcher(signal.SIGKILL))
    assert run.result.returncode == -signal.SIGKILL


def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time; print('READY', flush=True); time.sleep(1); print('DONE')")
    ready = threading.Event()
    result = run_marked(
        ["nohup", *LAUNCHER, str(script)],
        timeout=20,
        on_line=lambda line: ready.set() if line == "READY" else None,
        during=lambda job: ready.wait(15) and os.kill(job.launcher, signal.SIGHUP),
    )
    assert result.returncode == 0, result.describe()
    assert "DONE" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["-n", "0", "x.py"], "0 is not in the range"),
        (["-n", "2"], "Missing argument 'SCRIPT"),
        (["--start-deadline", "0", "x.py"], "0.0 is not in the range"),
        (["-n", "9", "--port", "65530", "x.py"], "9 ports from there would pass the last one, 65535"),
    ],
)
def test_a_wrong_call_starts_nothing(arguments: list[str], says: str) -> None:
    result = run_marked([*LAUNCHER, *arguments], timeout=20)
    assert result.returncode in (1, 2)
    assert says in result.output
    assert "x.py" not in result.output
