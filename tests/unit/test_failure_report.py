"""What a failed worker writes for its launcher, and which of several reports comes first."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from farandole.adapters import Worker, WorkerLostError, create_strategy
from farandole.adapters.failure_report import FOLDER_VARIABLE, read_reports, report_failure

HERE = Path(__file__)


def fail(error: BaseException) -> NoReturn:
    raise error


def caught(error: BaseException) -> BaseException:
    try:
        json.loads("1", parse_int=lambda _: fail(error))  # raised below a library
    except BaseException as raised:
        return raised
    raise AssertionError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def test_a_report_names_the_users_line_and_is_its_users_alone(folder: Path) -> None:
    report_failure(caught(ValueError("the mistake")), Worker(1, 2, 1, 2))
    (report,) = read_reports(folder)
    assert (report.rank, report.world_size, report.lost, report.error) == (1, 2, False, "ValueError: the mistake")
    line = 1 + HERE.read_text().splitlines().index("    raise error")
    assert report.where == f"{HERE}:{line}"
    assert report.traceback.startswith("Traceback") and report.traceback.endswith("ValueError: the mistake\n")
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_worker_that_lost_another_comes_after_the_one_that_failed(folder: Path) -> None:
    report_failure(caught(WorkerLostError("lost")), Worker(0, 2, 0, 2))
    report_failure(caught(ValueError("the mistake")), Worker(1, 2, 1, 2))
    assert [report.rank for report in read_reports(folder)] == [1, 0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), SystemExit(0), GeneratorExit()])
def test_what_is_no_failure_is_not_reported(error: BaseException, folder: Path) -> None:
    report_failure(caught(error), Worker())
    assert read_reports(folder) == []


def test_a_folder_that_is_gone_hides_no_failure(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(folder / "gone"))
    report_failure(caught(SystemExit(3)), Worker())


def test_torchrun_takes_the_failure_for_the_first_and_shows_its_traceback(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: dict[int, Any] = {}
    for rank, error in enumerate([WorkerLostError("lost"), ValueError("the mistake")]):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / f"error{rank}.json"))
        report_failure(caught(error), Worker(rank, 2, rank, 2))
        failures[rank] = ProcessFailure(rank, 1, 1, str(folder / f"error{rank}.json"))
    shown = str(ChildFailedError("train.py", failures))
    root = shown.split("Root Cause")[1]
    assert "ValueError: the mistake" in root and "lost" not in root
    assert "WorkerLostError: lost" in shown


def test_a_failure_that_the_program_went_on_from_is_withdrawn(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
    with pytest.raises(ValueError, match="the mistake"), create_strategy("local"):
        fail(ValueError("the mistake"))
    assert len(read_reports(folder)) == 1
    assert (folder / "error.json").exists()
    with create_strategy("local"):
        assert read_reports(folder) == []
    assert not (folder / "error.json").exists()
