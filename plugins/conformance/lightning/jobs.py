"""Start jobs that train Lightning's curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...launch.job import run_job
from ..jobs import Outcome
from ..servers import WorkerServers

PACKAGE = __package__


def run_curves(
    workers: int,
    folder: Path,
    curves: Sequence[tuple[str, str, str]],
    timeout: float = 300,
    servers: WorkerServers | None = None,
) -> Outcome:
    """Run one job that trains curves through Lightning's Trainer, in `folder`.

    Args:
        curves: strategy, variant and type of each; the job is started for the first one's strategy.
        timeout: seconds; then the job is killed, and its workers' stacks are in the outcome.
        servers: have the workers do it that are up there, instead of a job of its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specification = folder / "spec.json"
    specification.write_text(json.dumps(curves))
    strategy, program = curves[0][0], ["-m", f"{PACKAGE}.worker", str(specification)]
    if servers is not None:
        job = servers.run_program(strategy, workers, program, timeout)
    else:
        job = run_job(strategy, workers, program, timeout=timeout)
    return Outcome(job, folder, workers)
