"""Run a job of several workers to its end, and find every process of it.

Each process of the job has a mark in its environment, so that survivors are found even after they were re-parented. A
job that exceeds its timeout is asked for the stacks of all its workers, then killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from .command import launch_command

MARK = "FARANDOLE_JOB"
STACKS = "FARANDOLE_STACKS"


@dataclass(frozen=True)
class JobResult:
    """How a job ended.

    returncode: the launcher's exit code, negative for a signal.
    output: what launcher and workers printed, stdout and stderr together.
    seconds: from the launcher's start to its end.
    timed_out: whether the deadline passed and the job was killed.
    survivors: processes of the job that were still alive a moment after its launcher ended, and were killed then.
    stacks: all threads of all workers at the deadline; empty if the job ended by itself.
    """

    returncode: int
    output: str
    seconds: float
    timed_out: bool
    survivors: tuple[int, ...]
    stacks: str

    def describe(self) -> str:
        """Return a full report of a failed job."""
        how = "passed its deadline and was killed" if self.timed_out else f"ended with exit code {self.returncode}"
        parts = [f"the job {how} after {self.seconds:.1f} s", self.output[-8000:]]
        if self.survivors:
            parts.append(f"left running: {', '.join(map(str, self.survivors))}")
        if self.stacks:
            parts.append(f"stacks at the deadline:\n{self.stacks}")
        return "\n".join(parts)


def run_job(
    strategy: str,
    workers: int,
    program: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> JobResult:
    """Run `program` (as in `launch_command`) on `workers` local workers, for at most `timeout` seconds."""
    command = launch_command(strategy, workers, program)
    return run_marked(command.argv, timeout=timeout, env={**command.env, **(env or {})}, on_line=on_line)


def run_marked(
    argv: Sequence[str],
    *,
    timeout: float,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
    during: Callable[[Marked], None] | None = None,
) -> JobResult:
    """Run any command as a job; `during` is called with its processes while it runs."""
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="farandole-") as folder:
        started = time.monotonic()
        launcher = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {}), MARK: mark, STACKS: folder},
            start_new_session=True,
        )
        lines: list[str] = []
        reader = threading.Thread(target=_read, args=(launcher, lines, on_line), daemon=True)
        reader.start()
        job = Marked(mark, launcher.pid)
        stacks, timed_out = "", False
        try:
            if during is not None:
                during(job)
            launcher.wait(max(0.0, started + timeout - time.monotonic()))
        except subprocess.TimeoutExpired:
            timed_out = True
            stacks = job.stacks(Path(folder))
        except BaseException:
            job.kill()
            raise
        seconds = time.monotonic() - started
        survivors = () if timed_out else job.survivors()
        job.kill()
        launcher.wait()
        reader.join(5)
        return JobResult(launcher.returncode, "".join(lines), seconds, timed_out, survivors, stacks)


class Marked:
    """The processes of one job."""

    def __init__(self, mark: str, launcher: int) -> None:
        self._mark = mark
        self.launcher = launcher

    def running(self) -> bool:
        """Whether the launcher is still running."""
        try:
            return bool(psutil.Process(self.launcher).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def processes(self) -> list[psutil.Process]:
        """Return all live processes that carry the job's mark."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def survivors(self, grace: float = 3.0) -> tuple[int, ...]:
        """Return the processes that are still alive after `grace` seconds: helpers end after the launcher."""
        deadline = time.monotonic() + grace
        while alive := self.processes():
            if time.monotonic() > deadline:
                return tuple(process.pid for process in alive)
            time.sleep(0.05)
        return ()

    def kill(self) -> None:
        """Kill every process of the job."""
        for _ in range(3):
            processes = self.processes()
            for process in processes:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            if not processes:
                return
            # Do not wait for the launcher: its own `Popen` would then report an exit code of 0.
            psutil.wait_procs([process for process in processes if process.pid != self.launcher], timeout=2)

    def stacks(self, folder: Path) -> str:
        """Ask the workers that called `watch_stacks` for their stacks, and collect them."""
        for path in folder.glob("*.stacks"):
            with contextlib.suppress(psutil.Error):
                psutil.Process(int(path.stem)).send_signal(signal.SIGUSR1)
        time.sleep(0.5)
        return "\n".join(f"process {path.stem}:\n{path.read_text()}" for path in sorted(folder.glob("*.stacks")))


def watch_stacks() -> None:
    """In a worker: on SIGUSR1, write all threads' stacks to a file for `run_job`."""
    import faulthandler

    folder = os.environ.get(STACKS)
    if folder:
        # The file stays open as long as the process: faulthandler writes to its descriptor from a signal handler.
        file = open(Path(folder) / f"{os.getpid()}.stacks", "w")  # noqa: SIM115
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)


def _read(launcher: subprocess.Popen[bytes], lines: list[str], on_line: Callable[[str], None] | None) -> None:
    assert launcher.stdout is not None
    for raw in launcher.stdout:
        line = raw.decode(errors="replace")
        lines.append(line)
        if on_line is not None:
            on_line(line.rstrip("\n"))
