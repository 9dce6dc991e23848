"""Start jobs that train Lightning's curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ...launch.job import run_job
from ..jobs import Outcome

PACKAGE = __package__


def run_curves(workers: int, folder: Path, curves: Sequence[tuple[str, str, str]], timeout: float = 300) -> Outcome:
    """Run one job that trains curves through Lightning's Trainer, in `folder`.

    Args:
        curves: strategy, variant and type of each; the job is started for the first one's strategy.
        timeout: seconds; then the job is killed, and its workers' stacks are in the outcome.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specification = folder / "spec.json"
    specification.write_text(json.dumps(curves))
    program = ["-m", f"{PACKAGE}.worker", str(specification)]
    return Outcome(run_job(curves[0][0], workers, program, timeout=timeout), folder, workers)
