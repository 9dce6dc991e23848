"""Start conformance jobs and read what their workers wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...adapters.registry import strategy_row
from ..launch.job import JobResult, run_job
from .framework import faults_module

PACKAGE = __package__


@dataclass(frozen=True)
class Outcome:
    """A finished conformance job: how it ended, and the folder with its workers' results."""

    job: JobResult
    folder: Path
    workers: int

    def check(self, name: str) -> Any:
        """Return what rank 0's check returned.

        Raises:
            AssertionError: the check failed on a worker, or was not finished; with that worker's traceback.
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
            AssertionError: the job did not get as far as writing it.
        """
        path = self.folder / name
        if not path.exists():
            raise AssertionError(f"{name} was not written: {self.job.describe()}")
        return path


def run_conformance(
    strategy: str,
    workers: int,
    folder: Path,
    *,
    options: Mapping[str, Any] | None = None,
    curves: Sequence[tuple[str, str]] = (),
    checks: Sequence[str] = (),
    resume: Sequence[Path] = (),
    save: Path | None = None,
    timeout: float = 300,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Outcome:
    """Run one job in `folder`, which its workers share.

    Args:
        curves: (variant, dtype) pairs to train.
        checks: names of `framework.checks_of`.
        resume: checkpoints to load and train on from.
        save: where to leave a checkpoint for other jobs.
        timeout: seconds; then the job is killed, and its workers' stacks are in the outcome.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specification = folder / "spec.json"
    specification.write_text(
        json.dumps(
            {
                "strategy": strategy,
                "options": dict(options or {}),
                "curves": list(curves),
                "checks": list(checks),
                "resume": [str(path) for path in resume],
                "save": None if save is None else str(save),
            }
        )
    )
    program = ["-m", f"{PACKAGE}.worker", str(specification)]
    return Outcome(run_job(strategy, workers, program, timeout=timeout, env=env, on_line=on_line), folder, workers)


def run_fault(
    strategy: str,
    workers: int,
    where: str,
    how: str,
    folder: Path,
    options: Mapping[str, Any] | None = None,
    framework: str | None = None,
) -> JobResult:
    """Run a job that is to break, with a model of this framework, by default the strategy's; see `faults`."""
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
