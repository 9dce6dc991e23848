"""Workers that stay up, and run the specifications of many strategies one after the other.

Starting a job and importing its framework takes longer than most checks.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ...adapters.launch.start import Command
from ...adapters.registry import strategy_row
from ..launch.command import launch_command
from ..launch.job import JobResult, Marked, run_marked

_LOOK = 0.02  # seconds between looks at what the workers have finished
_END = 60.0  # seconds for workers to end when there is nothing more to do
_LAST_WORDS = 5.0  # seconds for their output to arrive, at most
_LIMIT = 12  # jobs at a time: each of their workers holds a framework, some 300 MB

FINISHED = "farandole: finished specification "
"""A worker prints this after each specification, with its number and a full stop."""

Key = tuple[str | None, str, int]


class WorkerServers:
    """Jobs by launcher, framework and number of workers, started on demand.

    A specification that a worker fails, or that takes too long, ends its job; the next one gets a new job.
    """

    def __init__(self) -> None:
        self._jobs: dict[Key, _Server] = {}  # least recently used first
        self._faults: list[str] = []

    def run(self, strategy: str, workers: int, specification: Path, timeout: float) -> JobResult:
        """Run a specification; see `worker`.

        Returns:
            How the job ended; exit code 0 if its workers finished the specification and wait for more.
        """
        row = strategy_row(strategy)
        key = (row.launcher, row.framework, workers)
        server = self._jobs.pop(key, None)
        if server is None:
            while len(self._jobs) >= _LIMIT:
                self._end(next(iter(self._jobs)))
            server = _Server(strategy, workers)
        result = server.run(specification, timeout)
        if server.running:
            self._jobs[key] = server
        return result

    def run_program(self, strategy: str, workers: int, program: Sequence[str], timeout: float) -> JobResult:
        """Run a program, as in `launch_command`, in each worker; the worker continues unless the program fails.

        It runs in the current folder, and `create_strategy()` creates the strategy in it. Environment, arguments and
        `sys.path` are restored after it.
        """
        with tempfile.TemporaryDirectory(prefix="farandole-") as folder:
            specification = Path(folder) / "spec.json"
            specification.write_text(json.dumps({"strategy": strategy, "run": [*program], "folder": os.getcwd()}))
            return self.run(strategy, workers, specification, timeout)

    def close(self) -> None:
        """End all jobs.

        Raises:
            AssertionError: one, now or before, did not end with exit code 0, or left a process.
        """
        for key in list(self._jobs):
            self._end(key)
        faults, self._faults = self._faults, []
        assert not faults, "\n".join(faults)

    def _end(self, key: Key) -> None:
        launcher, framework, workers = key
        job = self._jobs.pop(key).end()
        if job.returncode != 0 or job.survivors or job.timed_out:
            started = f"{launcher or 'a process'} with {workers} of {framework}"
            self._faults.append(f"{started} did not end cleanly: {job.describe()}")


class _Server:
    """One job, and the thread that controls it."""

    def __init__(self, strategy: str, workers: int) -> None:
        self._workers = workers
        self._folder = tempfile.TemporaryDirectory(prefix="farandole-")
        self._asked: queue.SimpleQueue[tuple[Path | None, float]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[JobResult | BaseException] = queue.SimpleQueue()
        self._lines: list[str] = []
        self.running = True
        program = ["-m", f"{__package__}.worker", "--serve", self._folder.name, str(os.getpid())]
        command = launch_command(strategy, workers, program)
        threading.Thread(target=self._run, args=(command,), daemon=True).start()

    def run(self, specification: Path | None, timeout: float) -> JobResult:
        """Make the workers run a specification, or end if it is `None`."""
        self._asked.put((specification, timeout))
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def end(self) -> JobResult:
        """End the workers, and return how the job ended."""
        return self.run(None, _END)

    def _run(self, command: Command) -> None:
        try:
            result: JobResult | BaseException = run_marked(
                command.argv, env=command.env, timeout=math.inf, on_line=self._lines.append, during=self._serve
            )
        except BaseException as error:
            result = error
        self.running = False
        self._folder.cleanup()
        self._answers.put(result)

    def _serve(self, job: Marked) -> None:
        """Pass on specifications until the job ends."""
        for number in itertools.count():
            specification, timeout = self._asked.get()
            started, first_line = time.monotonic(), len(self._lines)
            self._ask(number, specification, timeout)
            while not self._finished(number):
                if not job.running():
                    return
                if time.monotonic() > started + timeout:
                    raise subprocess.TimeoutExpired("a specification", timeout)
                time.sleep(_LOOK)
            self._read_all(number, first_line)
            output = "\n".join(line for line in self._lines[first_line:] if FINISHED not in line)
            self._answers.put(JobResult(0, output, time.monotonic() - started, False, (), ""))

    def _ask(self, number: int, specification: Path | None, timeout: float) -> None:
        folder = Path(self._folder.name)
        partial = folder / "partial"
        partial.write_text(json.dumps(specification and (str(specification), timeout)))
        partial.replace(folder / f"{number}.json")

    def _read_all(self, number: int, first_line: int) -> None:
        """Wait for the workers' output: it comes through their launcher, later than their files."""
        last, until = f"{FINISHED}{number}.", time.monotonic() + _LAST_WORDS
        while time.monotonic() < until:
            if sum(line.count(last) for line in self._lines[first_line:]) >= self._workers:
                return
            time.sleep(_LOOK)

    def _finished(self, number: int) -> bool:
        return len(list(Path(self._folder.name).glob(f"{number}.finished-*"))) == self._workers
