"""Why a worker left its strategy, written to a file for the launcher to show to the user.

torchrun gives each worker an error file, and shows that of the first failure. `farandole run` gives all of them a
folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import sysconfig
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from .errors import WorkerLostError
from .worker import Worker

FOLDER_VARIABLE = "FARANDOLE_FAILURES"
_TORCHRUN_VARIABLE = "TORCHELASTIC_ERROR_FILE"
_INSTALLED = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


@dataclass(frozen=True)
class FailureReport:
    """One worker's failure.

    time: seconds since the epoch.
    lost: whether it lost another worker, whose own failure is the cause.
    error: the last line of the traceback: "ValueError: the mistake".
    where: the line of the user's own code, as "train.py:31".
    traceback: as Python prints it.
    why: why it lost another worker, if it knows.
    """

    rank: int
    world_size: int
    time: float
    lost: bool
    error: str
    where: str
    traceback: str
    why: str = ""


def report_failure(error: BaseException, worker: Worker) -> None:
    """Write why this worker leaves to where its launcher asked for it; never raise.

    An interrupt, and `sys.exit()` with success, are no failures.
    """
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)):
        return
    if isinstance(error, SystemExit) and error.code in (None, 0):
        return
    with contextlib.suppress(Exception):  # the user must see the failure itself
        report = _report(error, worker)
        if folder := os.environ.get(FOLDER_VARIABLE):
            _write(Path(folder) / f"worker-{worker.rank}.json", asdict(report))
        if file := os.environ.get(_TORCHRUN_VARIABLE):
            _write(Path(file), _as_torchrun_reads(report))


def is_reported() -> bool:
    """Whether this worker's launcher asked for reports, so that it can end with the first failure."""
    return bool(os.environ.get(FOLDER_VARIABLE) or os.environ.get(_TORCHRUN_VARIABLE))


def withdraw_report(worker: Worker) -> None:
    """Remove the report of an earlier strategy of this process: the program survived its failure."""
    with contextlib.suppress(OSError):
        if folder := os.environ.get(FOLDER_VARIABLE):
            Path(folder, f"worker-{worker.rank}.json").unlink(missing_ok=True)
        if file := os.environ.get(_TORCHRUN_VARIABLE):
            Path(file).unlink(missing_ok=True)


def read_reports(folder: Path) -> list[FailureReport]:
    """Return the reports in a folder, earliest first, and those of lost workers last."""
    reports = [FailureReport(**json.loads(path.read_text())) for path in folder.glob("worker-*.json")]
    return sorted(reports, key=lambda report: (report.lost, report.time))


def _report(error: BaseException, worker: Worker) -> FailureReport:
    return FailureReport(
        rank=worker.rank,
        world_size=worker.world_size,
        time=time.time(),
        lost=isinstance(error, WorkerLostError),
        error="".join(traceback.format_exception_only(error)).strip(),
        where=_where(error),
        traceback="".join(traceback.format_exception(error)),
        why=error.why if isinstance(error, WorkerLostError) else "",
    )


def _where(error: BaseException) -> str:
    """Return the innermost line outside of libraries, if there is one: the user's own."""
    lines = [(frame, number) for frame, number in traceback.walk_tb(error.__traceback__)]
    own = [(frame, number) for frame, number in lines if not _is_a_librarys(frame)]
    for frame, number in reversed(own or lines):
        return f"{frame.f_code.co_filename}:{number}"
    return "an unknown line"


def _is_a_librarys(frame: FrameType) -> bool:
    file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
    return module.startswith("farandole.") or file.startswith(_INSTALLED) or file.startswith("<")


def _as_torchrun_reads(report: FailureReport) -> Mapping[str, object]:
    """Return what torch.distributed.elastic.multiprocessing.errors.ErrorHandler writes.

    It is written without torch, which TensorFlow's workers may not have imported.
    """
    # torchrun shows the earliest, in whole seconds, and the lower rank of two. The lost worker's failure must come
    # first.
    seconds = int(report.time) + report.lost
    details = {"py_callstack": report.traceback, "timestamp": str(seconds)}
    return {"message": {"message": report.error, "extraInfo": details}}


def _write(path: Path, content: Mapping[str, object]) -> None:
    """Write a file that only this user may read, whole or not at all."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(content, file)
    os.replace(partial, path)
