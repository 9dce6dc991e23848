"""Two jobs of one user that start at the same time on one machine: each trains by itself, with the right losses."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from farandole.plugins.conformance.reentry import DONE
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.job import JobResult, run_marked

MODULE = "farandole.plugins.conformance.reentry"


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
