"""One worker of a conformance job: `python -m farandole.plugins.conformance.worker SPEC.json`.

The specification names the strategy and what to run; results go to files beside it, each written whole when it is
known, so that what a job did before it broke is not lost.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from ...adapters import Progress, Strategy, create_strategy
from ..launch.job import watch_stacks


def main(specification: Path) -> None:
    """Run the curves, the checks and the resumptions that the specification lists."""
    watch_stacks()
    spec = json.loads(specification.read_text())
    folder = specification.parent
    strategy = create_strategy(spec["strategy"], **spec["options"])
    with strategy:
        for variant, dtype in spec["curves"]:
            _run_curve(strategy, folder, variant, dtype)
        _run_checks(strategy, folder, spec["checks"])
        for saved in spec["resume"]:
            _resume(strategy, folder, Path(saved))
        if spec["save"]:
            _save(strategy, Path(spec["save"]))


def _run_curve(strategy: Strategy, folder: Path, variant: str, dtype: str) -> None:
    from .curves import run_variant, write_curve

    curve = run_variant(strategy, variant, dtype)
    if strategy.worker.is_main:
        write_curve(folder / f"curve-{variant}-{dtype}.npz", curve)


def _run_checks(strategy: Strategy, folder: Path, names: list[str]) -> None:
    if not names:
        return
    from .framework import checks_of

    checks, rank = checks_of(strategy.capabilities.framework), strategy.worker.rank
    for name in names:
        path = folder / f"check-{name}-{rank}.json"
        try:
            _write(path, {"passed": True, "value": checks[name](strategy, folder)})
        except Exception:
            # The others may wait for this worker inside the check: the job cannot go on.
            _write(path, {"passed": False, "value": traceback.format_exc()})
            raise


# A checkpoint is saved after this many steps of a variant, and loaded to train the rest of its curve.
SAVED_VARIANT, SAVED_DTYPE, SAVED_STEPS = "empty_share", "float32", 50


def _save(strategy: Strategy, path: Path) -> None:
    from .curves import prepare, train
    from .variants import VARIANTS

    training = prepare(strategy, VARIANTS[SAVED_VARIANT], SAVED_DTYPE)
    _, progress = train(strategy, training, VARIANTS[SAVED_VARIANT], SAVED_DTYPE, steps=SAVED_STEPS)
    training.save(path, progress)


def _resume(strategy: Strategy, folder: Path, path: Path) -> None:
    from .curves import prepare, train, write_curve
    from .variants import STEPS, VARIANTS

    training = prepare(strategy, VARIANTS[SAVED_VARIANT], SAVED_DTYPE)
    start: Progress = training.load(path)
    curve, _ = train(strategy, training, VARIANTS[SAVED_VARIANT], SAVED_DTYPE, start=start, steps=STEPS - SAVED_STEPS)
    if strategy.worker.is_main:
        write_curve(folder / f"resumed-{path.name}.npz", curve)


def _write(path: Path, result: Any) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result))
    os.replace(partial, path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
