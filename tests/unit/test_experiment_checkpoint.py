"""The `checkpoint` experiment without its jobs: what it starts, its rows, and what makes it fail."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import pytest
from rich.console import Console

from farandole.adapters.registry import strategy_row
from farandole.experiments.checkpoint.bounds import LAYER_BYTES, PARAMETER_BYTES, layers_for, peak_ratio_bound
from farandole.experiments.checkpoint.experiment import Checkpoint
from farandole.experiments.checkpoint.raw import STATES
from farandole.experiments.experiment import Finished, Job, Row
from farandole.experiments.peak import FREE_AT_ONCE, peak_growth
from farandole.experiments.report import Report
from farandole.plugins.conformance.framework import reference_curve
from farandole.plugins.conformance.worker import SAVED_DTYPE, SAVED_STEPS, SAVED_VARIANT

OPTIONS: dict[str, Any] = {"only": None, "throughput_workers": 2, "state_mb": 200, "saves": 5}
MB = 1_000_000


def jobs(strategies: Sequence[str], workers: Sequence[int], **options: Any) -> list[tuple[str, int, str]]:
    asked = Checkpoint().jobs(strategies, workers, OPTIONS | options)
    return [(job.strategy, job.workers, job.options["task"]) for job in asked]


# Jobs.


def test_by_default_every_placement_saves_before_every_placement_loads_all_of_them():
    study = Checkpoint()
    asked = study.jobs(study.strategies, [int(number) for number in study.workers.split(",")], OPTIONS)
    saves, loads = ([job for job in asked if job.options["task"] == task] for task in ("save", "load all"))
    assert len(saves) == len(loads) == 19
    assert asked[:38] == saves + loads
    everything = [(job.strategy, job.workers) for job in saves]
    assert len(set(everything)) == 19
    assert all(job.options["saved"] == everything for job in loads)


def test_each_direction_has_a_process_of_its_own_that_gives_memory_back():
    asked = Checkpoint().jobs(["local", "fsdp"], [3], OPTIONS | {"only": "throughput"})
    assert [(job.strategy, job.workers, job.options["task"]) for job in asked] == [
        ("local", 1, "time saves"),
        ("local", 1, "time load"),
        ("fsdp", 2, "time saves"),
        ("fsdp", 2, "time load"),
    ]
    assert all(job.env == FREE_AT_ONCE for job in asked)
    assert all(job.options["layers"] * LAYER_BYTES >= 200 * MB for job in asked)


def test_either_kind_of_rows_can_be_left_out():
    pairs, throughput = (jobs(["ddp"], [2], only=only) for only in ("pairs", "throughput"))
    assert pairs == [("ddp", 2, "save"), ("ddp", 2, "load all")]
    assert throughput == [("ddp", 2, "time saves"), ("ddp", 2, "time load")]
    assert jobs(["ddp"], [2]) == pairs + throughput


def test_every_strategy_that_it_is_made_for_has_a_raw_side():
    assert set(STATES) == set(Checkpoint.strategies)
    assert all(strategy_row(name) for name in Checkpoint.strategies)


# Pairs.


def resumed(loss_error: float = 0.0, weight_error: float = 0.0) -> dict[str, Any]:
    """A worker's report of a resumption, off the reference by this much in its last loss and in one weight."""
    reference = reference_curve("torch", SAVED_VARIANT, SAVED_DTYPE)
    losses = list(reference.losses[SAVED_STEPS:])
    losses[-1] += loss_error
    weights = {name: weight.copy() for name, weight in reference.weights.items()}
    first = next(iter(weights.values()))
    first *= 1 + weight_error
    return {"losses": losses, "weights": {name: weight.tolist() for name, weight in weights.items()}}


def loaded(*results: Sequence[dict[str, Any] | None], strategy: str = "fsdp") -> Finished:
    """A job that loaded one checkpoint per result of a worker, the first saved by local, the others by ddp."""
    saved = [("local", 1), ("ddp", 2), ("ddp", 3)][: len(results[0])]
    return Finished(Job(strategy, len(results), {"task": "load all", "saved": saved}), results)


def test_a_pair_has_a_row_with_the_worst_of_all_workers():
    rows = Checkpoint().rows(
        [
            Finished(Job("ddp", 2, {"task": "save"}), [None, None]),
            loaded([resumed(), resumed()], [resumed(), resumed(loss_error=4e-6, weight_error=3e-6)]),
        ]
    )
    assert [list(row) for row in rows] == [[column.name for column in Checkpoint.pair_columns]] * 2
    from_ddp, from_local = rows
    assert (from_local["saved_with"], from_local["saved_workers"]) == ("local", 1)
    assert (from_ddp["saved_with"], from_ddp["saved_workers"]) == ("ddp", 2)
    assert {(row["loaded_with"], row["loaded_workers"]) for row in rows} == {("fsdp", 2)}
    assert from_local["max_loss_diff"] == from_local["max_weight_diff"] == 0
    assert from_ddp["max_loss_diff"] == pytest.approx(4e-6, rel=1e-3)
    assert from_ddp["max_weight_diff"] == pytest.approx(3e-6, rel=0.05)  # float32 weights
    assert Checkpoint().judge(rows) == []


def test_a_pair_off_the_curve_fails_and_so_does_one_that_was_never_loaded():
    short = resumed()
    short["losses"].pop()
    other = resumed()
    other["losses"][3] = float("nan")
    rows = Checkpoint().rows(
        [loaded([resumed(loss_error=2e-5), resumed(weight_error=0.25), None]), loaded([short, other], strategy="ddp")]
    )
    failures = [failure.split(", must be")[0] for failure in Checkpoint().judge(rows)]
    ddp, fsdp = (f"loaded_with={name}, loaded_workers=1" for name in ("ddp", "fsdp"))
    assert sorted(failures) == [
        f"saved_with=ddp, saved_workers=2, {ddp}: max_loss_diff is inf",
        f"saved_with=ddp, saved_workers=2, {fsdp}: max_weight_diff is 0.25",
        f"saved_with=ddp, saved_workers=3, {fsdp}: max_loss_diff is missing",
        f"saved_with=ddp, saved_workers=3, {fsdp}: max_weight_diff is missing",
        f"saved_with=local, saved_workers=1, {ddp}: max_loss_diff is inf",
        f"saved_with=local, saved_workers=1, {fsdp}: max_loss_diff is 2e-05",
    ]


# Throughput.


def timed(strategy: str, *, state_mb: float = 200, raw: float = 1.0, peak: float = 1.0, load_peak: float = 1.0) -> Row:
    """The row of two workers that save in 1 s and load in 2; the first is faster, and holds its shard at its peak."""
    layers = layers_for(state_mb)
    share = layers * LAYER_BYTES // 2
    options = {"layers": layers, "saves": 3}
    saves = [
        {"ours": [0.1, 0.1, 0.1], "raw": [0.1, 0.1, 0.1], "shard": share, "peak": share},
        {"ours": [1.0, 1.0, 9.0], "raw": [raw, raw, 9 * raw], "shard": share, "peak": peak * share},
    ]
    load = [
        {"load": 1.0, "shard": share, "peak": share},
        {"load": 2.0, "shard": share, "peak": load_peak * share},
    ]
    (row,) = Checkpoint().rows(
        [
            Finished(Job(strategy, 2, {"task": "time saves", **options}), saves),
            Finished(Job(strategy, 2, {"task": "time load", **options}), load),
        ]
    )
    assert list(row) == [column.name for column in Checkpoint.throughput_columns]
    return row


def test_throughput_counts_the_state_once_and_ends_with_the_slowest_worker():
    row = timed("fsdp", raw=0.9, peak=1.1, load_peak=1.2)
    assert row["state_mb"] == pytest.approx(16 * LAYER_BYTES / 1e6)
    assert row["save_mb_s"] == pytest.approx(row["state_mb"])
    assert row["raw_save_mb_s"] == pytest.approx(row["state_mb"] / 0.9)
    assert row["save_ratio"] == pytest.approx(0.9)
    assert row["load_mb_s"] == pytest.approx(row["state_mb"] / 2)
    assert row["peak_ratio"] == pytest.approx(1.2)
    assert timed("fsdp", peak=1.3, load_peak=1.2)["peak_ratio"] == pytest.approx(1.3)
    share = 8 * LAYER_BYTES
    assert row["peak_ratio_bound"] == (share + PARAMETER_BYTES + (64 << 20)) / share == peak_ratio_bound(share)
    assert Checkpoint().judge([row]) == []


def test_a_slow_save_fails_where_the_state_is_large():
    kept = [timed("ddp", raw=0.8), timed("ddp", raw=0.1, state_mb=150)]
    assert Checkpoint().judge(kept) == []
    failures = Checkpoint().judge([timed("ddp", raw=0.79)])
    assert failures == ["strategy=ddp, workers=2: save_ratio is 0.79, must be at least 0.8"]


@pytest.mark.parametrize("direction", ["peak", "load_peak"])
def test_a_worker_that_holds_more_than_its_share_fails_where_everything_is_shared_out(direction: str):
    assert timed("deepspeed_zero_1")["peak_ratio_bound"] is None
    assert Checkpoint().judge([timed("deepspeed_zero_1", **{direction: 9.0})]) == []
    for strategy in ("fsdp", "deepspeed_zero_3"):
        (failure,) = Checkpoint().judge([timed(strategy, **{direction: 2.0})])
        assert failure.startswith(f"strategy={strategy}, workers=2: peak_ratio is 2, must be at most 1.7")


def test_a_job_that_failed_leaves_its_part_of_the_row_missing():
    layers = layers_for(200)
    job = Job("fsdp", 1, {"task": "time load", "layers": layers, "saves": 3})
    rows = Checkpoint().rows([Finished(job, [{"load": 1.0, "shard": layers * LAYER_BYTES, "peak": 1}])])
    assert rows[0]["load_mb_s"] == pytest.approx(layers * LAYER_BYTES / 1e6)
    assert [failure.split(", must be")[0] for failure in Checkpoint().judge(rows)] == [
        "strategy=fsdp, workers=1: save_ratio is missing",
        "strategy=fsdp, workers=1: peak_ratio is missing",
    ]


def test_rows_of_each_kind_have_a_table(capsys: pytest.CaptureFixture[str]):
    pairs = Checkpoint().rows([loaded([resumed()], strategy="deepspeed_zero_3")])
    Report("checkpoint", Checkpoint.columns, [*pairs, timed("deepspeed_zero_2")], []).show(Console(width=80))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert all(len(line) <= 80 for line in lines)
    assert [line.split() for line in lines if line.startswith(("local", "deepspeed"))] == [
        ["local", "1", "deepspeed_zero_3", "1", "0.0e+00", "0.0e+00"],
        ["deepspeed_zero_2", "2", "202", "202", "202", "1.00", "101", "1.00", "-"],
    ]


# Memory.


def test_peak_growth_is_that_of_the_act_alone():
    def hold(megabytes: int) -> None:
        with mmap.mmap(-1, megabytes * MB, flags=mmap.MAP_PRIVATE) as memory:  # freed on leaving, whatever malloc
            for position in range(0, len(memory), mmap.PAGESIZE):
                memory[position] = 1

    hold(200)
    assert peak_growth(lambda: hold(50)) == pytest.approx(50 * MB, rel=0.1)
    assert peak_growth(lambda: hold(5)) == pytest.approx(5 * MB, abs=3 * MB)
