"""`farandole experiment checkpoint` from the command line to the JSON, in real processes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farandole.experiments.checkpoint.experiment import Checkpoint
from farandole.experiments.display import Display
from farandole.experiments.experiment import Job
from farandole.experiments.runner import RunJob, run_jobs

MAIN = "from farandole.cli.main import main; main(prog_name='farandole')"
ALL = pytest.param(("ddp", "fsdp"), (), marks=pytest.mark.exhaustive)


@pytest.mark.timeout(330)
@pytest.mark.parametrize(
    ("strategies", "more"), [(("fsdp",), ("--only", "throughput")), ALL], ids=["small state", "all"]
)
def test_end_to_end(tmp_path: Path, strategies: tuple[str, ...], more: tuple[str, ...]):
    # The throughput of so small a state is not judged: the machine is busy.
    arguments = ["--strategies", ",".join(strategies), "--workers", "2", "--state-mb", "25", "--saves", "2", *more]
    kept = tmp_path / "temporary"
    kept.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "experiment", "checkpoint", *arguments, "--json", str(tmp_path / "report.json")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TMPDIR": str(kept)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "checkpoint: passed" in done.stdout
    assert list(kept.glob("farandole-*")) == []  # nothing that was saved is left

    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    number = 0 if more else len(strategies) ** 2
    paired(rows[:number], strategies if number else ())
    throughput = rows[number:]
    assert [row["strategy"] for row in throughput] == list(strategies)
    for row in throughput:
        assert list(row) == [column.name for column in Checkpoint.throughput_columns]
        assert row["workers"] == 2
        assert row["state_mb"] >= 25
        assert min(row[name] for name in ("save_mb_s", "raw_save_mb_s", "save_ratio", "load_mb_s")) > 0
        # Not below 1 by more than a rounding, because the shard itself is in memory.
        assert 0.99 <= row["peak_ratio"] <= (row["peak_ratio_bound"] or 9)


def test_each_loads_what_each_saved(in_workers_that_stay: RunJob):
    strategies, study = ("ddp", "fsdp"), Checkpoint()
    jobs = study.jobs(strategies, [2], {"only": "pairs"})
    finished, failures = run_jobs("checkpoint", jobs, Display(), in_workers_that_stay)
    rows = study.rows(finished)
    assert [*failures, *study.judge(rows)] == []
    paired(rows, strategies)


def paired(rows: list[dict[str, Any]], strategies: tuple[str, ...]) -> None:
    """Check the rows of what two workers saved with each strategy, and two loaded with each."""
    assert [(row["saved_with"], row["loaded_with"]) for row in rows] == [*itertools.product(strategies, strategies)]
    for row in rows:
        assert list(row) == [column.name for column in Checkpoint.pair_columns]
        assert (row["saved_workers"], row["loaded_workers"]) == (2, 2)
        assert 0 < row["max_loss_diff"] <= 1e-5  # two workers round differently from one
        assert 0 < row["max_weight_diff"] <= 1e-5


@pytest.mark.timeout(120)
def test_a_checkpoint_that_could_not_be_saved_fails_its_pairs_and_not_the_others():
    saved = [("local", 1), ("ddp", 2)]
    jobs = [Job("local", 1, {"task": "save"}), Job("local", 1, {"task": "load all", "saved": saved})]
    finished, failures = run_jobs("checkpoint", jobs, Display())
    assert failures == []
    failed, whole = Checkpoint().rows(finished)
    assert (whole["saved_with"], failed["saved_with"]) == ("local", "ddp")
    assert Checkpoint().judge([whole]) == []
    assert len(Checkpoint().judge([failed])) == 2
