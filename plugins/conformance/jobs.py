"""Start conformance jobs and read their workers' results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.registry import strategy_row
from ..launch.job import JobResult, run_job
from .framework import faults_module
from .servers import WorkerServers

WORKER = f"{__package__}.worker"
"""The module that each worker of a job runs, with the paths of specifications."""


@dataclass(frozen=True)
class Outcome:
    """A finished conformance job: how it ended, and the folder with its workers' results."""

    job: JobResult
    folder: Path
    workers: int

    def check(self, name: str) -> Any:
        """Return what rank 0's check returned.

        Raises:
            AssertionError: the check failed on a worker (with its traceback), or was not finished.
        """
        results: list[Any] = []
        for rank in range(self.workers):
            path = self.folder / f"check-{name}-{rank}.json"
            result = json.loads(path.read_text()) if path.exists() else None
            if result is not None and not result["passed"]:
                raise AssertionError(f"worker {rank}: {result['value']}")
            results.append(result)
        if None in results:
            raise AssertionError(f"worker {results.index(None)} did not finish it: {self.job.describe()}")
        return results[0]["value"]

    def path(self, name: str) -> Path:
        """Return a result file.

        Raises:
            AssertionError: the job did not write it.
        """
        path = self.folder / name
        if not path.exists():
            raise AssertionError(f"{name} was not written: {self.job.describe()}")
        return path


def write_specification(
    folder: Path,
    strategy: str,
    *,
    options: Mapping[str, Any] | None = None,
    curves: Sequence[tuple[str, str]] = (),
    checks: Sequence[str] = (),
    resume: Sequence[Path] = (),
    save: Path | None = None,
    program: Path | None = None,
) -> Path:
    """Write the work of a job's workers into a folder that they share, and return the file's path.

    Args:
        curves: (variant, dtype) pairs to train.
        checks: names of `framework.checks_of`.
        resume: checkpoints to load and resume from.
        save: where to save a checkpoint for other jobs.
        program: a file whose `main(strategy, folder)` is called last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specification = folder / "spec.json"
    asked = {
        "strategy": strategy,
        "options": dict(options or {}),
        "curves": list(curves),
        "checks": list(checks),
        "resume": [str(path) for path in resume],
        "save": None if save is None else str(save),
        "program": None if program is None else str(program),
    }
    specification.write_text(json.dumps(asked))
    return specification


def run_conformance(
    strategy: str,
    workers: int,
    folder: Path,
    *,
    timeout: float = 300,
    servers: WorkerServers | None = None,
    launched_for: str | None = None,
    **asked: Any,
) -> Outcome:
    """Run one job in `folder`, which its workers share.

    Args:
        timeout: seconds; then the job is killed, and its workers' stacks are in the outcome.
        servers: use running workers of these, instead of a new job.
        launched_for: the strategy whose launcher starts the workers; by default `strategy`.
        asked: see `write_specification`.
    """
    specification = write_specification(folder, strategy, **asked)
    if servers is not None:
        job = servers.run(launched_for or strategy, workers, specification, timeout)
    else:
        job = run_job(launched_for or strategy, workers, ["-m", WORKER, str(specification)], timeout=timeout)
    return Outcome(job, folder, workers)


def run_fault(
    strategy: str,
    workers: int,
    where: str,
    how: str,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    framework: str | None = None,
) -> JobResult:
    """Run a job that fails, with a model of this framework, by default the strategy's; see `faults`."""
    program = [
        "-m",
        faults_module(framework or strategy_row(strategy).framework),
        strategy,
        json.dumps(dict(options or {})),
        where,
        how,
        str(folder),
    ]
    return run_job(strategy, workers, program, timeout=90)
