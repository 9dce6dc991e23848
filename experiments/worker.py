"""One worker of an experiment's job: `python -m farandole.experiments.worker JOB.json`, under the launcher.

It writes `JOB.result.RANK.json`, or `JOB.error.RANK.txt` with its error.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from ..adapters.errors import FarandoleError
from ..adapters.launch.detect import detect_launch
from ..plugins.launch.job import watch_stacks
from .table import experiment_entry


def main(path: Path) -> None:
    """Do the work of the job file: `{"experiment": name, "strategy": name, "options": {...}}`."""
    watch_stacks()
    rank = detect_launch().worker.rank
    job = json.loads(path.read_text())
    try:
        result = experiment_entry(job["experiment"]).load().work(job["strategy"], job["options"])
    except BaseException as error:
        text = f"{type(error).__name__}: {error}" if isinstance(error, FarandoleError) else traceback.format_exc()
        error_path(path, rank).write_text(text)
        raise
    result_path(path, rank).write_text(json.dumps(result))


def result_path(path: Path, rank: int) -> Path:
    """Return where worker `rank` of the job at `path` writes its result."""
    return path.with_suffix(f".result.{rank}.json")


def error_path(path: Path, rank: int) -> Path:
    """Return where worker `rank` of the job at `path` writes its error."""
    return path.with_suffix(f".error.{rank}.txt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
