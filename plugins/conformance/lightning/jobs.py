"""Start jobs that train Lightning's curves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..jobs import Outcome
from ..servers import WorkerServers

PACKAGE = __package__


def run_curves(
    workers: int,
    folder: Path,
    curves: Sequence[tuple[str, str, str]],
    servers: WorkerServers,
    timeout: float = 300,
) -> Outcome:
    """Run one job that trains curves through Lightning's Trainer, in `folder`.

    Args:
        curves: strategy, variant and type of each; the job is started for the first one's strategy.
        servers: the running workers.
        timeout: seconds; then the job is killed, and its workers' stacks are in the outcome.
    """
    folder.mkdir(parents=True, exist_ok=True)
    specification = folder / "spec.json"
    specification.write_text(json.dumps(curves))
    program = ["-m", f"{PACKAGE}.worker", str(specification)]
    return Outcome(servers.run_program(curves[0][0], workers, program, timeout), folder, workers)
