"""One worker of a conformance job: `python -m farandole.plugins.conformance.worker SPEC.json...`.

A specification names the strategy and its work. Results go to files beside it, each written atomically as soon as it is
known, so that they survive a later failure of the job.

With `--serve FOLDER PROCESS` it stays up, and runs the specifications in the folder one after the other, see `servers`,
until it is asked to end or that process has ended. There a specification may also name a whole program.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import json
import os
import runpy
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from ...adapters import Progress, Strategy, create_strategy, entry
from ...adapters.launch.start import STRATEGY_VARIABLE
from ..launch.job import watch_stacks
from .servers import FINISHED

_LOOK = 0.05  # seconds between looks for the next specification
_LATE = 60.0  # seconds beyond a specification's timeout until its job is killed


def main(*specifications: str) -> None:
    """Run specifications, one after the other."""
    watch_stacks()
    for specification in specifications:
        _run(Path(specification))


def serve(folder: Path, asker: int) -> None:
    """Run specifications as they arrive."""
    watch_stacks()
    os.environ.pop(STRATEGY_VARIABLE, None)  # the job was started for the first of several strategies
    for number in itertools.count():
        request = folder / f"{number}.json"
        while not request.exists():
            if not psutil.pid_exists(asker):
                return
            time.sleep(_LOOK)
        asked = json.loads(request.read_text())
        if asked is None:
            return
        specification, timeout = asked
        # In case the server has ended by then. (It is no Python thread: a DataLoader may still fork.)
        faulthandler.dump_traceback_later(timeout + _LATE, exit=True)
        _run(Path(specification))
        gc.collect()
        faulthandler.cancel_dump_traceback_later()
        print(f"{FINISHED}{number}.", flush=True)
        (folder / f"{number}.finished-{os.getpid()}").touch()


def _run(specification: Path) -> None:
    """Run a specification."""
    spec = json.loads(specification.read_text())
    if "run" in spec:
        _run_program(spec["strategy"], spec["run"], spec["folder"])
        return
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
        if spec["program"]:
            runpy.run_path(spec["program"])["main"](strategy, folder)


def _run_program(strategy: str, program: Sequence[str], folder: str) -> None:
    """Run a program, as in `launch_command`, in this process as if it were a new one."""
    with _restored():
        os.environ[STRATEGY_VARIABLE] = strategy
        os.chdir(folder)
        try:
            if program[0] == "-m":
                sys.argv = [*program[1:]]
                runpy.run_module(program[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = [*program]
                sys.path.insert(0, str(Path(program[0]).absolute().parent))
                runpy.run_path(program[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
        entry.give_way()  # Lightning's Trainers stay joined, and Horovod's thread is always busy


@contextlib.contextmanager
def _restored() -> Iterator[None]:
    """Restore environment and paths for the next specification."""
    environ, argv, path, folder = dict(os.environ), sys.argv, sys.path[:], Path.cwd()
    yield
    os.environ.clear()
    os.environ.update(environ)
    sys.argv, sys.path[:] = argv, path
    os.chdir(folder)


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
            # The others may wait for this worker inside the check: the job cannot continue.
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
    if sys.argv[1] == "--serve":
        serve(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main(*sys.argv[1:])
