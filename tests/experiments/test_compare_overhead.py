"""`farandole experiment compare` and `overhead` from the command line to the JSON, in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from farandole.experiments.compare.experiment import Compare
from farandole.experiments.display import Display
from farandole.experiments.experiment import Job
from farandole.experiments.overhead.experiment import Overhead
from farandole.experiments.runner import RunJob, run_jobs
from farandole.experiments.waiting.experiment import Waiting

EXHAUSTIVE = pytest.mark.exhaustive
COMPARED = ("ddp", "fsdp", "horovod", "deepspeed_zero_2", "tf_multiworker", "tf_horovod")
OVERHEAD = ("ddp", "fsdp", "horovod", "deepspeed_zero_1", "deepspeed_zero_2", "deepspeed_zero_3_offload")
LIGHTNING = ("horovod", "deepspeed_zero_1", "deepspeed_zero_2")
TENSORFLOW = ("tf_multiworker", "tf_horovod")


def experiment(*arguments: str, path: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    main = "from farandole.cli.main import main; main(prog_name='farandole')"
    environ = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run(
        [sys.executable, "-c", main, "experiment", *arguments, "--json", str(path)],
        capture_output=True,
        text=True,
        timeout=700,
        env=environ,
    )
    return done, json.loads(path.read_text()) if path.exists() else {}


@pytest.mark.parametrize("strategies", [("ddp",), pytest.param(COMPARED, marks=EXHAUSTIVE)], ids=["one", "all"])
def test_compare_passes_end_to_end(tmp_path: Path, strategies: tuple[str, ...]):
    arguments = ("--strategies", ",".join(strategies), "--workers", "2", "--epochs", "5")
    done, report = experiment("compare", *arguments, path=tmp_path / "compare.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compare: passed" in done.stdout
    assert report["experiment"] == "compare"
    assert report["passed"] is True
    assert report["environment"]["torch"]
    assert report["environment"]["keras"]
    compared(report["rows"], strategies)


def test_compare_on_engines_of_both_frameworks(in_workers_that_stay: RunJob):
    strategies = ("horovod", "tf_multiworker")
    study = Compare()
    finished, failures = run_jobs(
        "compare", study.jobs(strategies, [2], {"epochs": 5}), Display(), in_workers_that_stay
    )
    rows = study.rows(finished)
    assert [*failures, *study.judge(rows)] == []
    compared(rows, strategies)


def compared(rows: list[dict[str, Any]], strategies: tuple[str, ...]) -> None:
    """Check the rows of strategies of two workers, after those of one process for comparison."""
    references = list(dict.fromkeys("tf_local" if name.startswith("tf_") else "local" for name in strategies))
    assert [row["strategy"] for row in rows] == [*references, *strategies]
    for row in rows:
        assert list(row) == [column.name for column in Compare.columns]
        assert row["workers"] == (1 if row["strategy"] in references else 2)
        assert row["test_accuracy"] >= 0.97
        assert row["max_loss_diff"] <= 1e-5
        assert 0 < row["step_ms"] <= row["step_ms_p95"]
        assert row["samples_per_s"] > 0
        assert row["peak_mb"] > 50
        if row["strategy"].startswith("tf_"):
            assert row["state_bytes"] is None
        else:
            assert row["state_bytes"] == pytest.approx(row["state_bytes_due"], rel=0.1)


@pytest.mark.parametrize(
    "strategies", [("local",), pytest.param((*OVERHEAD, *TENSORFLOW), marks=EXHAUSTIVE)], ids=["one", "all"]
)
def test_overhead_end_to_end(tmp_path: Path, strategies: tuple[str, ...]):
    # Times are not judged: the machine is busy.
    done, report = experiment(
        "overhead",
        *("--strategies", ",".join(strategies), "--models", "small", "--pairs", "8"),
        path=tmp_path / "overhead.json",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    timed(report["rows"], strategies)


def test_overhead_times_both_sides_in_each_frontend(in_workers_that_stay: RunJob):
    strategies = ("deepspeed_zero_2", "tf_multiworker")
    study = Overhead()
    asked = {"models": ["small"], "frontends": ["loop", "lightning", "keras"], "pairs": 8}
    finished, failures = run_jobs("overhead", study.jobs(strategies, [2], asked), Display(), in_workers_that_stay)
    assert failures == []
    timed(study.rows(finished), strategies)


def timed(rows: list[dict[str, Any]], strategies: tuple[str, ...]) -> None:
    """Check the rows of the small model."""
    assert [(row["strategy"], row["workers"], row["frontend"]) for row in rows] == [
        *((name, 1 if name == "local" else 2, "loop") for name in strategies),
        *((name, 2, "lightning (own)") for name in strategies if name == "ddp"),
        *((name, 2, "lightning") for name in strategies if name in LIGHTNING),
        *((name, 2, "keras") for name in strategies if name in TENSORFLOW),
    ]
    for row in rows:
        assert list(row) == [column.name for column in Overhead.columns]
        assert row["model"] == "small"
        assert row["step_ms"] > 0
        assert row["raw_step_ms"] > 0
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]


def test_waiting_is_measured_on_engines_of_both_frameworks(in_workers_that_stay: RunJob):
    strategies, study = ("ddp", "tf_horovod"), Waiting()
    asked = {"delay_ms": 100, "steps": 6}  # too few for the bounds, but a delay that no busy machine hides
    finished, failures = run_jobs("waiting", study.jobs(strategies, [2], asked), Display(), in_workers_that_stay)
    assert failures == []
    rows = study.rows(finished)
    assert [(row["strategy"], row["workers"]) for row in rows] == [(name, 2) for name in strategies]
    for row in rows:
        assert list(row) == [column.name for column in Waiting.columns]
        assert row["delay_ms"] >= 100
        assert 0 < row["least_ms"] <= row["most_ms"]


def test_a_job_that_fails_is_reported_with_its_workers_words_and_the_others_go_on(
    capfd: pytest.CaptureFixture[str],
):
    asked = {"frontend": "loop", "pairs": 3}
    wrong, right = Job("local", 1, {"model": "tiny", **asked}), Job("local", 1, {"model": "small", **asked})
    finished, failures = run_jobs("overhead", [wrong, right], Display())
    assert [done.job for done in finished] == [right]
    assert failures == ["local, 1 worker, model tiny, frontend loop: the job ended with exit code 1"]
    assert "KeyError: 'tiny'" in capfd.readouterr().err


def test_a_job_that_takes_too_long_is_killed_and_reported(capfd: pytest.CaptureFixture[str]):
    slow = Job("local", 1, {"model": "large", "frontend": "loop", "pairs": 100_000}, timeout=4)
    finished, failures = run_jobs("overhead", [slow], Display())
    assert finished == []
    assert failures == ["local, 1 worker, model large, frontend loop: the job did not end within 4 s and was killed"]
    assert "worker.py" in capfd.readouterr().err  # the stack of where it stood


def test_ending_the_command_ends_its_workers():
    main = "from farandole.cli.main import main; main(prog_name='farandole')"
    arguments = ["experiment", "overhead", "--strategies", "local", "--models", "large", "--pairs", "100000"]
    with subprocess.Popen([sys.executable, "-c", main, *arguments], stderr=subprocess.PIPE, text=True) as command:
        assert command.stderr is not None
        assert "[1/1]" in command.stderr.readline()
        deadline = time.monotonic() + 30
        while not (workers := psutil.Process(command.pid).children(recursive=True)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert workers
        time.sleep(1)  # past the launch itself, and well before 100000 pairs
        command.send_signal(signal.SIGTERM)
        assert command.wait(15) == 128 + signal.SIGTERM
    _, alive = psutil.wait_procs(workers, timeout=5)
    assert alive == []
