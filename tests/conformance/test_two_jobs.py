"""Two jobs of one user start at the same time on one machine: each trains alone, or says what to do."""

import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.launch.start import find_launcher
from farandole.plugins.conformance.reentry import DONE
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.job import JobResult, run_marked

MODULE = "farandole.plugins.conformance.reentry"
PROGRAM = str(Path(__file__).with_name("two_jobs_program.py"))


def run(strategy: str) -> JobResult:
    command = launch_command(strategy, 2, ["-m", MODULE, "1", strategy])
    return run_marked(command.argv, env=command.env, timeout=120)


@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "strategy",
    [
        "horovod",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("ddp", "tf_multiworker", "tf_horovod")),
    ],
)
def test_two_jobs_at_once(strategy: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        jobs = list(threads.map(run, [strategy] * 2))
    for job in jobs:
        assert job.returncode == 0 and not job.survivors, job.describe()
        assert job.output.count(DONE) == 2, job.describe()


def run_both(argv: Sequence[Sequence[str]], env: dict[str, str] | None = None) -> list[JobResult]:
    """Run two jobs of `two_jobs_program.py`; only a job's own workers join it."""
    with ThreadPoolExecutor(2) as threads:
        jobs = list(threads.map(lambda each: run_marked(each, env=env, timeout=120), argv))
    for name, job in zip("AB", jobs, strict=True):
        assert "met A B" not in job.output and "met B A" not in job.output, job.describe()
        assert (job.returncode == 0) == (job.output.count(f"met {name} {name}") == 2), job.describe()
        assert not job.survivors, job.describe()
    return jobs


def programs(folder: Path, late: str = "", workers: int = 4) -> list[list[str]]:
    return [[PROGRAM, name, str(folder), str(workers), late] for name in "AB"]


def test_two_jobs_that_were_told_one_port(tmp_path: Path, free_ports: Any, by_hand: Any) -> None:
    """The second job's worker 1 comes before the first's, and before its own worker 0 finds the port taken."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    told = [{**meeting, "RANK": str(rank)} for rank in range(2)]
    commands = [by_hand(told, [sys.executable, *program]) for program in programs(tmp_path, late="A1,B0")]
    first, second = run_both(commands)
    assert first.returncode == 0, first.describe()
    assert second.returncode != 0, second.describe()
    assert second.output.count("choose a free one in MASTER_PORT") >= 2, second.describe()
    assert f"MASTER_PORT={meeting['MASTER_PORT']}" in second.output, second.describe()


@pytest.mark.exhaustive
def test_two_jobs_with_one_port_of_the_deepspeed_launcher(tmp_path: Path, free_ports: Any) -> None:
    launcher = find_launcher("deepspeed")
    assert launcher is not None
    argv = [launcher, "--num_accelerators", "2", "--no_local_rank", "--master_port", str(free_ports(1)[0])]
    jobs = run_both([[*argv, *program] for program in programs(tmp_path, late="A1,B0")])
    assert [job.returncode == 0 for job in jobs] == [True, False], [job.describe() for job in jobs]
    assert "deepspeed --master_port" in jobs[1].output, jobs[1].describe()


@pytest.mark.exhaustive
def test_two_trainers_with_one_port_that_start_their_workers(free_ports: Any) -> None:
    program = str(Path(__file__).with_name("trainers_program.py"))
    argv, env = [sys.executable, program, "1", "horovod"], {"MASTER_PORT": str(free_ports(1)[0])}
    with ThreadPoolExecutor(2) as threads:
        started = [threads.submit(run_marked, argv, env=env, timeout=120) for _ in range(2)]
        jobs = sorted((job.result() for job in started), key=lambda job: job.returncode != 0)
    assert jobs[0].returncode == 0 and jobs[0].output.count(DONE) == 2, jobs[0].describe()
    assert jobs[1].returncode != 0 and DONE not in jobs[1].output, jobs[1].describe()
    assert "start again, or choose a free one in MASTER_PORT" in jobs[1].output, jobs[1].describe()
    assert not any(job.survivors for job in jobs), [job.describe() for job in jobs]
