"""One worker of a job with Lightning's curves: `python -m farandole.plugins.conformance.lightning.worker SPEC.json`.

Rank 0 writes each beside the specification.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ....adapters import detect_launch
from ...launch.job import watch_stacks
from ..curves import write_curve
from .training import run_variant


def main(specification: Path) -> None:
    """Train the curves that the specification lists."""
    watch_stacks()
    worker = detect_launch().worker
    for strategy, variant, dtype in json.loads(specification.read_text()):
        curve = run_variant(strategy, worker.world_size, variant, dtype)
        if worker.is_main:
            write_curve(specification.parent / f"curve-{strategy}-{variant}-{dtype}.npz", curve)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
