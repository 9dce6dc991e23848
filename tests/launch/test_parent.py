"""`farandole run` as a launcher's parent: signals, terminals, the last output, and that neither outlives the other."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

STAND_IN = Path(__file__).with_name("stand_in_launcher.py")
# Then it sleeps in short steps: a signal just before a read begins is handled only after it.
READS = """
import time
print("ASKED", flush=True)
print("READ", input(), flush=True)
while True: time.sleep(0.1)
"""

pytestmark = pytest.mark.timeout(30)


class Parent:
    """A parent in a new terminal, with the output of it and its children."""

    def __init__(self, argv: list[str], workers: int) -> None:
        self._terminal, inside = pty.openpty()
        code = (
            "import sys\nfrom farandole.adapters.launch.start import Command\n"
            "from farandole.plugins.launch.parent import run_launcher\n"
            f"sys.exit(run_launcher(Command(tuple(sys.argv[1:]), {{}}, is_worker={workers == 1}), {workers}))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *argv],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inside)
        self.output = ""

    def read_until(self, text: str) -> None:
        while text not in self.output:
            self.output += self._read()

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def launcher_and_workers(self) -> list[int]:
        self.read_until("LAUNCHER")
        self.read_until("\n")
        return [int(word) for word in self.output.split("LAUNCHER")[1].splitlines()[0].split()]

    def end(self) -> int:
        """Return the exit code."""
        with contextlib.suppress(OSError):  # no process has the terminal open
            while True:
                self.output += self._read()
        return self.process.wait()

    def lines(self) -> list[str]:
        return self.output.replace("\r", "").splitlines()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)

    def _read(self) -> str:
        read = os.read(self._terminal, 65536).decode()
        if not read:
            raise OSError("nobody has the terminal open")
        return read


@pytest.fixture
def started() -> Iterator[list[Parent]]:
    parents: list[Parent] = []
    yield parents
    for parent in parents:
        parent.close()


def start(started: list[Parent], *argv: str, workers: int = 2) -> Parent:
    started.append(Parent([sys.executable, *argv], workers))
    return started[-1]


def soon(condition: Callable[[], bool]) -> bool:
    """Whether it holds within five seconds."""
    until = time.monotonic() + 5
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def gone(pids: list[int]) -> bool:
    return soon(lambda: all(status(pid) in (None, psutil.STATUS_ZOMBIE) for pid in pids))


def status(pid: int) -> str | None:
    try:
        return str(psutil.Process(pid).status())
    except psutil.NoSuchProcess:
        return None


def test_the_worker_that_failed_first_stands_last(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "raise")
    assert parent.end() == 7
    *_, raised, _, line = parent.lines()
    assert raised == "ValueError: the mistake"
    where = 1 + STAND_IN.read_text().splitlines().index('            raise ValueError("the mistake\\nin two lines")')
    assert line == f"farandole: worker 1 of 2 failed at {os.path.relpath(STAND_IN)}:{where}: ValueError: the mistake"


def test_a_worker_that_ends_without_a_word_is_named(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "lost")
    assert parent.end() == 7
    said = "farandole: worker 1 of 2 ended without an error (killed, or by return, sys.exit(0) or os._exit); worker 0"
    assert parent.lines()[-1].startswith(said)


def test_workers_that_waited_for_each_other_are_told_so(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "all_lost")
    assert parent.end() == 7
    assert parent.lines()[-1].startswith("farandole: all 2 workers lost each other: they called different")


def test_the_cause_that_one_worker_knows_stands_last(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "knows_why")
    assert parent.end() == 7
    assert parent.lines()[-1] == "farandole: the workers lost each other: worker 0 was alone"


def test_control_c_reaches_the_launcher_once(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "sleep")
    processes = parent.launcher_and_workers()
    parent.type("\x03")
    assert parent.end() == 130
    assert parent.lines()[-2].endswith("SIGNALS SIGINT")
    assert parent.lines()[-1] == "farandole: the job was ended by SIGINT"
    assert gone(processes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_signals_are_passed_on(number: signal.Signals, started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "sleep")
    parent.launcher_and_workers()
    os.killpg(parent.process.pid, number)
    assert parent.end() == (130 if number == signal.SIGINT else 7)
    assert parent.lines()[-2].endswith(f"SIGNALS {number.name}")


def test_one_worker_reads_from_the_terminal_and_gets_its_control_c(started: list[Parent]) -> None:
    parent = start(started, "-c", READS, workers=1)
    parent.read_until("ASKED")
    parent.type("an answer\n")
    parent.read_until("READ an answer")
    parent.type("\x03")
    assert parent.end() == 130
    assert parent.output.count("KeyboardInterrupt") == 1


def test_one_worker_that_is_killed_is_told_of(started: list[Parent]) -> None:
    parent = start(started, "-c", "import os; os.kill(os.getpid(), 9)", workers=1)
    assert parent.end() == 137
    assert parent.lines() == ["farandole: the program was killed by SIGKILL"]


def test_stopping_and_going_on_takes_the_launcher_along(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "sleep")
    launcher = parent.launcher_and_workers()[0]
    parent.type("\x1a")
    os.waitid(os.P_PID, parent.process.pid, os.WSTOPPED)
    assert soon(lambda: status(launcher) == psutil.STATUS_STOPPED)
    parent.process.send_signal(signal.SIGCONT)
    os.waitid(os.P_PID, parent.process.pid, os.WCONTINUED)
    parent.type("\x03")
    assert parent.end() == 130


def test_a_parent_that_is_killed_leaves_nothing(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "sleep")
    processes = parent.launcher_and_workers()
    parent.process.kill()
    assert gone(processes)


def test_a_failure_that_came_before_control_c_is_shown(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "raise_early")
    parent.read_until("in two lines")
    parent.type("\x03")
    assert parent.end() == 130
    assert parent.lines()[-1].startswith("farandole: worker 1 of 2 failed at "), parent.output
    assert "farandole: the job was ended by SIGINT" in parent.lines()


def test_workers_that_save_have_time_after_their_launcher_was_killed(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "saving")
    launcher, *workers = parent.launcher_and_workers()
    parent.read_until("READY 0")
    parent.read_until("READY 1")
    os.kill(launcher, signal.SIGKILL)
    assert parent.end() == 137
    assert {"SAVED 0", "SAVED 1"} <= set(parent.lines()), parent.output
    assert gone(workers)


def test_a_launcher_that_is_killed_leaves_nothing(started: list[Parent]) -> None:
    parent = start(started, str(STAND_IN), "sleep")
    launcher, *workers = parent.launcher_and_workers()
    os.kill(launcher, signal.SIGKILL)
    assert parent.end() == 137
    assert gone(workers)
