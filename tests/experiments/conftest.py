"""Experiments' jobs in shared workers, because starting workers takes most of a small job's time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from farandole.experiments.experiment import Job
from farandole.experiments.runner import RunJob
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.launch.job import JobResult


@pytest.fixture
def in_workers_that_stay(worker_servers: WorkerServers) -> RunJob:
    """Return how `run_jobs` runs a job there."""

    def run(job: Job, program: Sequence[str], _on_line: Callable[[str], None]) -> JobResult:
        assert not job.env, "workers that are up already cannot be given variables"
        return worker_servers.run_program(job.strategy, job.workers, program, timeout=job.timeout)

    return run
