"""What `farandole doctor` concludes; tests/launch/test_doctor.py runs its checks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from farandole.cli.checks import Check, check_environment, judge_gpus, judge_launcher


def script(path: Path, interpreter: str = sys.executable) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{interpreter}\n")
    return str(path)


def test_a_launcher_of_this_environment(tmp_path: Path) -> None:
    path = script(tmp_path / "torchrun")
    assert judge_launcher("torchrun", "torch", path, path, [tmp_path]) == Check("torchrun", "ok", detail=path)
    check = judge_launcher("torchrun", "torch", path, None, [tmp_path])
    assert (check.status, "not on PATH" in check.detail) == ("ok", True)


def test_a_launcher_that_is_missing_or_cannot_start(tmp_path: Path) -> None:
    path = script(tmp_path / "horovodrun", "/no/such/python")
    for found in (path, None):
        check = judge_launcher("horovodrun", "horovod", found, found, [tmp_path])
        assert (check.status, check.fix) == ("broken", "farandole horovod install --force")


def test_a_launcher_of_another_environment(tmp_path: Path) -> None:
    path, other = script(tmp_path / "torchrun"), script(tmp_path / "other" / "torchrun")
    check = judge_launcher("torchrun", "torch", other, other, [tmp_path])
    assert (check.status, f"{other} belongs to another" in check.detail) == ("note", True)
    check = judge_launcher("torchrun", "torch", path, other, [tmp_path])
    assert (check.status, f"typing torchrun runs {other}" in check.detail) == ("note", True)


def test_gpus_and_the_command_that_tests_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge_gpus(Check("torch", "ok", facts={"gpus": 2}))
    assert (found.status, found.facts) == ("ok", {"gpus": 2})
    assert found.detail.startswith("PyTorch sees 2; `pytest tests/cuda`")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for torch in (None, Check("torch", "broken"), Check("torch", "ok", facts={"gpus": 0})):
        found = judge_gpus(torch)
        assert found.status == "absent"
        assert found.detail.startswith("PyTorch sees none; CUDA_VISIBLE_DEVICES hides them all; `pytest tests/cuda`")


def test_the_environment_is_read_as_a_worker_would(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_environment().status == "ok"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    check = check_environment()
    assert (check.status, check.facts["rank"], check.facts["world_size"]) == ("note", 1, 2)
    monkeypatch.setenv("HOROVOD_RANK", "0")
    monkeypatch.setenv("HOROVOD_SIZE", "2")
    check = check_environment()
    assert check.status == "note"
    assert "HOROVOD_RANK=0" in check.detail
    assert "RANK=1" in check.detail
