"""Experiments without their jobs: choosing, judging, reporting."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

from farandole.adapters import Batch, Progress
from farandole.adapters.errors import EngineUnavailableError, FarandoleError, OptionError, UnknownStrategyError
from farandole.adapters.registry import Requirement, strategy_rows
from farandole.experiments.checkpoint.experiment import Checkpoint
from farandole.experiments.choice import asked_strategies, check_requirements, installed_strategies
from farandole.experiments.cli import experiment as command
from farandole.experiments.compare.experiment import Compare
from farandole.experiments.compare.memory_bounds import expected_state_bytes
from farandole.experiments.curve import max_loss_diff
from farandole.experiments.experiment import Column, Finished, Job, placements
from farandole.experiments.metrics.experiment import Metrics
from farandole.experiments.options import frontends_option
from farandole.experiments.overhead.experiment import Overhead
from farandole.experiments.overhead.pairs import time_pairs
from farandole.experiments.overhead.shapes import Shape
from farandole.experiments.overhead.statistics import median_interval
from farandole.experiments.overhead.turns import Turns
from farandole.experiments.parity.experiment import Parity
from farandole.experiments.progress import told
from farandole.experiments.report import Report
from farandole.experiments.table import EXPERIMENTS, experiment_entry
from farandole.experiments.waiting.experiment import Waiting
from farandole.experiments.waiting.experiment import row as waiting_row

COLUMNS = (Column("strategy"), Column("workers"), Column("ratio", ".3f"))


def invoke(*arguments: str) -> str:
    """Return the message of the error that the command ends with."""
    result = CliRunner().invoke(command, list(arguments))
    assert isinstance(result.exception, FarandoleError), result.output
    return str(result.exception)


def test_help_imports_no_framework():
    code = (
        "import sys\n"
        "from farandole.experiments.cli import experiment\n"
        "for arguments in (['--help'], ['compare', '--help'], ['overhead', '--help']):\n"
        "    try: experiment(arguments)\n"
        "    except SystemExit as done: assert not done.code\n"
        "print([name for name in ('torch', 'horovod', 'sklearn', 'tensorflow', 'numpy.random') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == "[]"
    for entry in EXPERIMENTS.values():
        assert entry.name in printed


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_entry_loads_and_judges_its_own_columns(name: str):
    study = experiment_entry(name).load()
    empty = {column.name: None for column in study.columns}
    assert study.judge([]) == []
    assert {"strategy", "workers"} <= set(empty)


def test_unknown_names_suggest_the_nearest():
    assert "Did you mean 'compare'?" in invoke("comapre")
    assert "Did you mean 'ddp'?" in invoke("compare", "--strategies", "local,dpd")
    assert "Did you mean 'medium'?" in invoke("overhead", "--models", "medum")
    assert "Did you mean 'keras'?" in invoke("overhead", "--frontends", "loop,kears")
    assert "Did you mean 'lightning'?" in invoke("parity", "--frontends", "lightening")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "at least one"),
        (["--workers", "two"], "not a number"),
        (["--strategies", ","], "names no strategy"),
        (["--json", "/no/such/folder/report.json"], "no folder /no/such/folder"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(arguments: list[str], said: str):
    assert said in invoke("compare", *arguments)


def test_installed_strategies_are_the_default_and_the_rest_is_named_with_its_fix(monkeypatch: pytest.MonkeyPatch):
    rows = strategy_rows()
    absent = Requirement("nosuch", "no_such_module", "pip install nosuch")
    engines = {name: row for name, row in rows.items() if name != "ddp"}
    engines["ddp"] = type(rows["ddp"])("ddp", rows["ddp"].target, "", requirements=(absent,))
    monkeypatch.setattr("farandole.experiments.choice.strategy_rows", lambda: engines)
    monkeypatch.setattr("farandole.experiments.choice.strategy_row", engines.__getitem__)
    chosen, left_out = installed_strategies(Compare())
    assert "local" in chosen
    assert "ddp" not in chosen
    assert "pip install nosuch" in left_out["ddp"]
    with pytest.raises(EngineUnavailableError, match="pip install nosuch"):
        asked_strategies("compare", Compare(), ["local", "ddp"])


def test_an_experiment_refuses_what_it_is_not_made_for():
    class OnlyHorovod(Overhead):
        strategies = ("horovod",)
        requirements = (Requirement("nosuch", "no_such_module", "pip install nosuch"),)

    with pytest.raises(OptionError, match="not made for strategy 'local', only for: horovod"):
        asked_strategies("overhead", OnlyHorovod(), ["local"])
    with pytest.raises(EngineUnavailableError, match="pip install nosuch"):
        check_requirements("overhead", OnlyHorovod())
    with pytest.raises(UnknownStrategyError):
        asked_strategies("overhead", Overhead(), ["hrovod"])


def test_a_strategy_of_one_process_is_placed_once():
    assert list(placements(["local", "ddp"], [2, 3, 2])) == [("local", 1), ("ddp", 2), ("ddp", 3)]


def test_compare_runs_its_reference_first_whether_asked_or_not():
    jobs = Compare().jobs(["horovod", "ddp"], [2, 3], {"epochs": 1})
    assert [(job.strategy, job.workers) for job in jobs] == [
        ("local", 1),
        ("horovod", 2),
        ("horovod", 3),
        ("ddp", 2),
        ("ddp", 3),
    ]


def test_compare_runs_the_references_of_the_frameworks_that_are_asked_for():
    jobs = Compare().jobs(["tf_horovod", "ddp"], [2], {"epochs": 1})
    assert [(job.strategy, job.workers) for job in jobs] == [
        ("tf_local", 1),
        ("local", 1),
        ("tf_horovod", 2),
        ("ddp", 2),
    ]
    assert [job.strategy for job in Compare().jobs(["tf_local"], [2], {"epochs": 1})] == ["tf_local"]


def finished(strategy: str, workers: int, losses: list[float], accuracy: float = 0.99) -> Finished:
    steps = len(losses)
    worker = {
        "test_accuracy": accuracy,
        "losses": losses,
        "samples": [64.0] * steps,
        "seconds": [9.0] * 5 + [0.5] * (steps - 5),
        "peak_mb": 100.0,
        "state_bytes": expected_state_bytes(strategy, workers),
    }
    return Finished(Job(strategy, workers), [{**worker, "peak_mb": 100.0 + rank} for rank in range(workers)])


def test_compare_rows_hold_what_their_names_say():
    curve = [2.0] * 10
    local, ddp = Compare().rows([finished("local", 1, curve), finished("ddp", 3, [*curve[:-1], 2.00001])])
    assert list(ddp) == [column.name for column in Compare.columns]
    assert local["max_loss_diff"] == 0
    assert ddp["max_loss_diff"] == pytest.approx(5e-6)  # relative to the loss, which is above 1
    assert ddp["samples_per_s"] == pytest.approx(128)
    assert ddp["step_ms"] == pytest.approx(500)  # the first steps are not timed
    assert ddp["peak_mb"] == 102
    assert Compare().judge([local, ddp]) == []


def test_compare_fails_an_accuracy_a_curve_and_a_worker_that_saw_another_loss():
    curve = [2.0] * 10
    other = finished("horovod", 2, curve)
    other.results[1]["losses"] = [*curve[:-1], 2.1]
    rows = Compare().rows(
        [
            finished("local", 1, curve),
            finished("ddp", 2, curve, accuracy=0.9),
            other,
            finished("fsdp", 2, [*curve[:-1], math.nan]),
        ]
    )
    failures = Compare().judge(rows)
    assert len(failures) == 3
    assert failures[0] == "strategy=ddp, workers=2: test_accuracy is 0.9, must be at least 0.97"
    assert failures[1].startswith("strategy=horovod, workers=2: max_loss_diff is 0.05, must be at most 1e-05")
    assert failures[2] == "strategy=fsdp, workers=2: max_loss_diff is nan, must be at most 1e-05"


def test_compare_fails_a_worker_that_holds_more_or_less_than_its_engine_shares_out():
    curve = [2.0] * 10
    results = [finished("local", 1, curve), finished("fsdp", 2, curve), finished("deepspeed_zero_1", 3, curve)]
    assert [row["state_bytes_due"] for row in Compare().rows(results)] == [16, 8, 12]
    results[1].results[1]["state_bytes"] = 8.9
    for worker in results[2].results:
        worker["state_bytes"] = 10.7
    assert Compare().judge(Compare().rows(results)) == [
        "strategy=fsdp, workers=2: state_bytes is 8.9, must be at most 8.8",
        "strategy=deepspeed_zero_1, workers=3: state_bytes is 10.7, must be at least 10.8",
    ]


def test_compare_holds_a_curve_against_the_reference_of_its_own_framework():
    torch, tensorflow = [2.0] * 10, [1.0] * 10
    results = [
        finished("local", 1, torch),
        finished("tf_local", 1, tensorflow),
        finished("ddp", 2, torch),
        finished("tf_horovod", 2, tensorflow),
        finished("tf_multiworker", 2, torch),
    ]
    rows = Compare().rows(results)
    assert [row["max_loss_diff"] for row in rows] == [0, 0, 0, 0, 1]
    # What cannot be counted is left out, not counted as 0.
    assert [row["state_bytes"] for row in rows] == [16, None, 16, None, None]
    assert [row["state_bytes_due"] for row in rows] == [16, None, 16, None, None]
    assert Compare().judge(rows) == [
        "strategy=tf_multiworker, workers=2: max_loss_diff is 1, must be at most 1e-05",
    ]


def test_compare_without_its_reference_does_not_pass():
    rows = Compare().rows([finished("ddp", 2, [2.0] * 10)])
    assert Compare().judge(rows) == ["strategy=ddp, workers=2: max_loss_diff is missing, must be at most 1e-05"]


def test_a_curve_of_other_length_is_no_curve_to_compare():
    with pytest.raises(ValueError, match="2 steps"):
        max_loss_diff([1.0, 1.0], [1.0])
    assert math.isnan(max_loss_diff([1.0, math.nan, 1.0], [1.0, 1.0, 1.0]))


def test_overhead_judges_medium_and_large_on_several_workers_only():
    def row(model: str, workers: int, ratio: float, frontend: str = "loop") -> dict[str, object]:
        pairs = {"ours": [ratio] * 9, "raw": [1.0] * 9}
        job = Job("horovod" if workers > 1 else "local", workers, {"model": model, "frontend": frontend, "pairs": 9})
        (found,) = Overhead().rows([Finished(job, [pairs] * workers)])
        assert list(found) == [column.name for column in Overhead.columns]
        return found

    kept = [row("small", 2, 3.0), row("medium", 1, 2.0), row("medium", 2, 1.05), row("large", 2, 1.03)]
    for frontend in ("keras", "lightning"):
        kept += [row("medium", 2, 1.10, frontend), row("large", 2, 1.05, frontend), row("large", 1, 2.0, frontend)]
    assert Overhead().judge(kept) == []
    missed = [row("medium", 2, 1.06), row("large", 2, 1.04)]
    for frontend in ("keras", "lightning"):
        missed += [row("medium", 2, 1.11, frontend), row("large", 2, 1.06, frontend)]
    assert Overhead().judge(missed) == [
        "strategy=horovod, workers=2, frontend=loop, model=medium: ratio is 1.06, must be at most 1.05",
        "strategy=horovod, workers=2, frontend=loop, model=large: ratio is 1.04, must be at most 1.03",
        "strategy=horovod, workers=2, frontend=keras, model=medium: ratio is 1.11, must be at most 1.1",
        "strategy=horovod, workers=2, frontend=keras, model=large: ratio is 1.06, must be at most 1.05",
        "strategy=horovod, workers=2, frontend=lightning, model=medium: ratio is 1.11, must be at most 1.1",
        "strategy=horovod, workers=2, frontend=lightning, model=large: ratio is 1.06, must be at most 1.05",
    ]


def test_overhead_shows_what_lightning_costs_by_itself_and_does_not_judge_it():
    job = Job("ddp", 2, {"model": "medium", "frontend": "lightning", "pairs": 9})
    rows = Overhead().rows([Finished(job, [{"ours": [3.0] * 9, "raw": [1.0] * 9}] * 2)])
    assert [(row["strategy"], row["frontend"], row["ratio"]) for row in rows] == [("ddp", "lightning (own)", 3.0)]
    assert Overhead().judge(rows) == []


def test_overhead_times_fit_on_the_strategies_that_have_it():
    asked = {"models": ["small", "large"], "frontends": ["loop", "lightning", "keras"], "pairs": 9}
    jobs = Overhead().jobs(["ddp", "fsdp", "horovod", "tf_local", "tf_horovod"], [2, 3], asked)
    told = [(job.strategy, job.workers, job.options["frontend"]) for job in jobs if job.options["model"] == "large"]
    lightning = [(name, number) for name in ("ddp", "horovod") for number in (2, 3)]
    keras = [("tf_local", 1), ("tf_horovod", 2), ("tf_horovod", 3)]
    assert told == [
        *((name, number, "loop") for name in ("ddp", "fsdp", "horovod") for number in (2, 3)),
        *((name, number, "loop") for name, number in keras),
        *((name, number, "lightning") for name, number in lightning),
        *((name, number, "keras") for name, number in keras),
    ]
    assert len(jobs) == 2 * len(told)
    assert Overhead().jobs(["local", "ddp"], [2], {**asked, "frontends": ["keras"]}) == []


def test_waiting_counts_what_the_others_waited_for_longer_than_the_least():
    row = waiting_row(
        "ddp", [{"wait": 0.041, "delay": 0.0}, {"wait": 0.032, "delay": 0.0}, {"wait": 0.002, "delay": 0.03}]
    )
    assert (row["strategy"], row["workers"]) == ("ddp", 3)
    assert (row["delay_ms"], row["least_ms"], row["most_ms"]) == pytest.approx((30, 30, 39))
    assert (row["least_share"], row["most_share"]) == pytest.approx((1, 1.3))
    assert Waiting().judge([row]) == ["strategy=ddp, workers=3: most_share is 1.3, must be at most 1.2"]
    nothing = waiting_row("ddp", [{"wait": 0.002, "delay": 0.0}, {"wait": 0.002, "delay": 0.03}])
    assert Waiting().judge([nothing]) == ["strategy=ddp, workers=2: least_share is 0, must be at least 0.8"]
    jobs = Waiting().jobs(["local", "ddp"], [1, 2, 3], {"delay_ms": 30.0, "steps": 40})
    assert [(job.strategy, job.workers) for job in jobs] == [("ddp", 2), ("ddp", 3)]


def test_metrics_rows_count_trials_and_alarms():
    cost = Job("ddp", 2, {"study": "cost", "model": "medium"})
    turns = [{"with": [1.0, 1.02, 1.01], "without": [1.0, 1.0, 1.0]}, {"with": [1.0, 1.04, 1.03], "without": [1.0] * 3}]
    (row,) = Metrics().rows([Finished(cost, turns)])
    assert (row["cost_ratio"], row["step_ms"]) == pytest.approx((1.03, 1000))
    assert Metrics().judge([row]) == [
        "strategy=ddp, workers=2, frontend=loop, model=medium: cost_ratio is 1.03, must be at most 1.01"
    ]
    right = {"rank": 1, "named": 1, "after": 12}
    trials = [
        {"slowed": "data", "cause": "data", **right},
        {"slowed": "data", "cause": "data", **right, "after": 18},
        {"slowed": "forward", "cause": "backward", **right},
        {"slowed": "backward", "rank": 0, "named": None, "cause": None, "after": None},
    ]
    found = {"step_ms": 150.0, "trials": trials, "false_alarms": 2, "windows": 20, "other_share": 0.01}
    slowed = Job("ddp", 2, {"study": "stragglers", "model": "large"})
    data, forward, backward, nothing = Metrics().rows([Finished(slowed, [found, {}])])
    assert (data["trials"], data["named_right"], data["cause_right"], data["named_after_steps"]) == (2, 1, 1, 15)
    assert (forward["named_right"], forward["cause_right"]) == (1, 0)
    assert (backward["named_right"], backward["named_after_steps"]) == (0, None)
    failures = Metrics().judge([data, forward, backward, nothing])
    said = [line.rpartition(": ")[2].split(",")[0] for line in failures]
    assert said == ["cause_right is 0", "named_right is 0", "cause_right is 0", "false_alarms is 2"]
    asked = {"studies": ["cost", "stragglers"], "cost_model": "small", "slowed_model": "large", "trials": 1, "pairs": 2}
    jobs = Metrics().jobs(["ddp", "fsdp"], [1, 2], asked)
    assert [(job.strategy, job.options["model"]) for job in jobs] == [
        ("ddp", "small"),
        ("fsdp", "small"),
        ("ddp", "large"),
        ("fsdp", "large"),
    ]


def test_parity_runs_lightning_on_the_strategies_that_it_knows():
    asked = {"frontends": ["loop", "lightning"], "variants": ["clip"]}
    jobs = Parity().jobs(["ddp", "horovod", "tf_horovod"], [2, 3], asked)
    assert [(job.strategy, job.workers) for job in jobs if job.options["frontend"] == "lightning"] == [
        ("horovod", 2),
        ("horovod", 3),
    ]
    assert len(jobs) == 8


def test_a_frontend_that_is_not_installed_is_left_out_or_refused_with_its_fix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("farandole.experiments.options.package", lambda name: None)
    option = frontends_option(("loop", "lightning"), "Time these only.")
    context = click.Context(click.Command("overhead", params=[option]))
    assert option.handle_parse_result(context, {}, [])[0] == ["loop"]
    assert "pip install 'farandole[lightning]'" in capsys.readouterr().err
    with pytest.raises(EngineUnavailableError, match="pip install 'farandole"):
        option.handle_parse_result(context, {"frontends": "loop,lightning"}, [])


def test_turns_are_paired_and_the_first_ones_are_not_counted():
    turns = Turns(Shape(layers=1, width=1, batch=64), pairs=1000)
    assert (turns.steps, turns.epochs) == (50, 22)
    trained: list[int] = []
    for epoch in range(turns.epochs):
        turns.begin()
        turns.end(lambda epoch=epoch: trained.append(epoch))
    assert trained == list(range(turns.epochs))
    assert {side: len(taken) for side, taken in turns.seconds().items()} == {"ours": 20, "raw": 20}


def test_pairs_are_drawn_alike_everywhere_and_each_side_sees_every_batch():
    batches = [Batch((number,), (1.0,), 1.0, Progress(0, number)) for number in range(3)]

    def run() -> tuple[dict[str, list[float]], list[tuple[str, int]]]:
        seen: list[tuple[str, int]] = []
        sides = {name: lambda batch, name=name: seen.append((name, batch.progress.step)) for name in ("ours", "raw")}
        return time_pairs(sides, batches, pairs=10), seen

    seconds, seen = run()
    assert {name: len(taken) for name, taken in seconds.items()} == {"ours": 10, "raw": 10}
    assert seen == run()[1]
    pairs = [seen[first : first + 2] for first in range(0, len(seen), 2)]
    for number, pair in enumerate(pairs):
        assert sorted(pair) == [("ours", number % 3), ("raw", number % 3)]
    assert {pair[0][0] for pair in pairs} == {"ours", "raw"}  # neither is always first


def test_median_interval_holds_the_median_as_often_as_it_says():
    # From a table of order statistics: for n = 10, the 2nd and the 9th (97.9 %); for n = 200, the 86th and the 115th.
    assert median_interval(range(1, 11)) == (2, 9)
    assert median_interval(range(1, 201)) == (86, 115)
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    draw = random.Random(0)
    held = 0
    for _ in range(400):
        low, high = median_interval([draw.lognormvariate(0, 1) for _ in range(50)])
        held += low <= 1 <= high
    assert 0.93 <= held / 400 <= 0.99


def test_report_json_is_strict_and_complete(tmp_path: Path):
    row = {"strategy": "ddp", "workers": 2, "ratio": math.nan}
    Report("overhead", COLUMNS, [row], ["ddp: ratio is nan"]).write(tmp_path / "report.json")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((tmp_path / "report.json").read_text(), parse_constant=refuse)
    assert content["experiment"] == "overhead"
    assert content["passed"] is False
    assert content["rows"] == [{"strategy": "ddp", "workers": 2, "ratio": None}]
    assert {"date", "platform", "cpu_count", "python", "farandole", "torch", "numpy"} <= set(content["environment"])


def tables() -> list[tuple[str, tuple[Column, ...]]]:
    """Each experiment's tables; `checkpoint` has two, and `metrics` three."""
    several = {
        "checkpoint": [Checkpoint.pair_columns, Checkpoint.throughput_columns],
        "metrics": [Metrics.cost_columns, Metrics.slowed_columns, Metrics.quiet_columns],
    }
    return [
        (name, columns)
        for name in EXPERIMENTS
        for columns in several.get(name) or [experiment_entry(name).load().columns]
    ]


@pytest.mark.parametrize(("name", "columns"), tables())
def test_tables_fit_into_80_columns_without_cutting_a_word(
    name: str, columns: tuple[Column, ...], capsys: pytest.CaptureFixture[str]
):
    row = {column.name: 123.456 if column.spec else 2 for column in columns}
    texts = {"strategy": "horovod", "frontend": "lightning", "model": "medium"}
    texts |= {"variant": "unused_parameter", "dtype": "float32"}
    row.update({key: value for key, value in texts.items() if key in row})
    Report(name, columns, [row], []).show(Console(width=80))
    printed = capsys.readouterr().out
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines())
    headings = [word for column in columns for word in column.name.split("_")]
    for word in [*headings, *(value for value in row.values() if isinstance(value, str)), "passed"]:
        assert word in printed


def test_a_wider_table_is_never_shortened(capsys: pytest.CaptureFixture[str]):
    name = "a_strategy_with_" + "a_long_" * 12 + "name"
    Report("compare", COLUMNS, [{"strategy": name, "workers": 2, "ratio": 1.0}], []).show(Console(width=80))
    printed = capsys.readouterr().out
    assert name in printed
    assert "1.000" in printed


def test_report_names_each_failure_and_does_not_pass_without_rows(capsys: pytest.CaptureFixture[str]):
    Report("compare", COLUMNS, [], []).show(Console(width=80))
    assert "FAILED" in capsys.readouterr().out
    Report("compare", COLUMNS, [{"strategy": "ddp", "workers": 2, "ratio": None}], ["[ddp] so"]).show(Console(width=80))
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert "- [ddp] so" in printed


def test_progress_lines_are_found_behind_a_launchers_prefix():
    assert told("[0]<stdout>:farandole progress: epoch 1 of 3") == "epoch 1 of 3"
    assert told("epoch 1 of 3") is None
