"""Run an experiment's jobs, one after the other, with the launch command of `farandole run`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..plugins.launch.job import JobResult, run_job
from .display import Display
from .experiment import Finished, Job
from .progress import told
from .worker import error_path, result_path

# The same on any machine and for any number of workers, so that rows can be compared.
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1")
_TAIL = 20  # lines shown of a failed worker's traceback


RunJob = Callable[[Job, Sequence[str], Callable[[str], None]], JobResult]
"""Run a job's program, as in `launch_command`, and pass on each line of its output."""


def run_jobs(
    name: str, jobs: Sequence[Job], display: Display, run: RunJob | None = None
) -> tuple[list[Finished], list[str]]:
    """Return the jobs that succeeded, and a line for each that failed; the failed worker's last lines are displayed.

    Args:
        run: how to run a job; by default in new workers.
    """
    finished: list[Finished] = []
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="farandole-") as folder:
        shared = Path(folder) / "shared"
        shared.mkdir()
        for number, job in enumerate(jobs):
            path = Path(folder) / f"{number}.json"
            options = {**job.options, "folder": str(shared)}
            path.write_text(json.dumps({"experiment": name, "strategy": job.strategy, "options": options}))
            with display.job(job, number, len(jobs)) as show:
                program = ["-m", f"{__package__}.worker", str(path)]
                outcome = (run or _run)(job, program, _progress_to(show))
            failure = _failure(outcome, path, job)
            if failure is None:
                results = [json.loads(result_path(path, rank).read_text()) for rank in range(job.workers)]
                finished.append(Finished(job, results))
            else:
                failures.append(f"{job}: {failure}")
                display.failed_job(job, failure, _last_words(outcome, path, job.workers))
    return finished, failures


def _progress_to(show: Callable[[str | None], None]) -> Callable[[str], None]:
    return lambda line: show(told(line))


def _run(job: Job, program: Sequence[str], on_line: Callable[[str], None]) -> JobResult:
    env = {**_ONE_THREAD, **job.env}
    return run_job(job.strategy, job.workers, program, timeout=job.timeout, env=env, on_line=on_line)


def _failure(outcome: JobResult, path: Path, job: Job) -> str | None:
    if outcome.timed_out:
        return f"the job did not end within {job.timeout:g} s and was killed"
    if outcome.returncode != 0:
        return f"the job ended with exit code {outcome.returncode}"
    if outcome.survivors:
        return f"the job left processes running ({', '.join(map(str, outcome.survivors))}; killed)"
    silent = [str(rank) for rank in range(job.workers) if not result_path(path, rank).exists()]
    return f"worker {', '.join(silent)} wrote no result" if silent else None


def _last_words(outcome: JobResult, path: Path, workers: int) -> list[str]:
    """Return the traceback of the first failed worker; without one, the workers' stacks, or the end of the output."""
    written = [error for rank in range(workers) if (error := error_path(path, rank)).exists()]
    if written:
        first = min(written, key=lambda error: error.stat().st_mtime_ns)
        return first.read_text().splitlines()[-_TAIL:]
    return outcome.stacks.splitlines() or outcome.output.splitlines()[-_TAIL:]
