"""Shared workers: they serve until a specification breaks them, and end with the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from farandole.plugins.conformance.jobs import Outcome, run_conformance
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.launch.job import JobResult

PROGRAMS = {
    "works": "pass",
    "raises": "raise RuntimeError('this was planned')",
    "hangs": "time.sleep(60)",
    "ends badly": "atexit.register(os._exit, 3)",
}
PROGRAM = """
import atexit, os, time
def main(strategy, folder):
    (folder / "pid").write_text(str(os.getpid()))
    {}
"""
ASK_AND_DIE = """
import os, signal, sys
from pathlib import Path
from farandole.plugins.conformance.jobs import run_conformance
from farandole.plugins.conformance.servers import WorkerServers
run_conformance("local", 1, Path(sys.argv[1]), program=Path(sys.argv[2]), servers=WorkerServers())
os.kill(os.getpid(), signal.SIGKILL)
"""


def program(folder: Path, name: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(PROGRAM.format(PROGRAMS[name]))
    return path


def test_a_job_serves_until_it_is_broken_and_the_next_one_takes_over(tmp_path: Path) -> None:
    servers = WorkerServers()

    def run(name: str, timeout: float = 60) -> tuple[Outcome, str]:
        script = program(tmp_path, name)
        outcome = run_conformance("local", 1, tmp_path, program=script, timeout=timeout, servers=servers)
        return outcome, outcome.path("pid").read_text()

    pids = []
    for name in ("works", "hangs", "raises"):
        outcome, pid = run(name, timeout=2 if name == "hangs" else 60)
        pids.append(pid)
        assert (outcome.job.returncode == 0) == (name == "works"), name
        assert ("this was planned" in outcome.job.output) == (name == "raises")
        assert ("hangs.py" in outcome.job.stacks and outcome.job.timed_out) == (name == "hangs")
        assert outcome.job.survivors == ()
    assert pids[0] == pids[1] != pids[2]
    assert run("works")[1] == run("ends badly")[1]
    with pytest.raises(AssertionError, match=r"a process with 1 of torch did not end cleanly.*exit code 3"):
        servers.close()
    assert not any(psutil.pid_exists(int(pid)) for pid in pids)


def test_a_whole_program_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    servers = WorkerServers()
    (tmp_path / "beside.py").write_text("NAME = 'beside'")

    def run(name: str, *lines: str) -> JobResult:
        path = tmp_path / f"{name}.py"
        path.write_text("\n".join(lines))
        return servers.run_program("local", 1, [str(path), name, str(tmp_path)], timeout=60)

    first = run(
        "first",
        "import os, sys, beside",
        "from farandole.adapters import create_strategy",
        "print(__name__, sys.argv[1], beside.NAME, create_strategy().name)",
        "os.environ['LEFT'] = 'behind'",
        "os.chdir(sys.argv[2])",
        "sys.exit(0)",
    )
    second = run("second", "import os, sys", "print(sys.argv[1], os.environ.get('LEFT'), os.getcwd(), sys.path)")
    third = run("third", "import sys", "sys.exit('this was planned')")
    servers.close()
    assert "__main__ first beside local" in first.output and first.returncode == 0, first.describe()
    assert f"second None {Path.cwd()} " in second.output and str(tmp_path) + "'" in second.output, second.describe()
    assert second.output.count(str(tmp_path)) == 1, "its own folder"
    assert third.returncode == 1 and "this was planned" in third.output, third.describe()


def test_workers_end_with_the_process_that_asked_for_them(tmp_path: Path) -> None:
    arguments = [str(tmp_path), str(program(tmp_path, "works"))]
    done = subprocess.run([sys.executable, "-c", ASK_AND_DIE, *arguments], env={**os.environ}, timeout=60)
    assert done.returncode == -signal.SIGKILL
    worker, deadline = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while psutil.pid_exists(worker):
        assert time.monotonic() < deadline, "the worker has nobody to work for, and goes on"
        time.sleep(0.05)
