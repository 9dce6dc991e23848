"""`metrics`: the cost of `WorkerMetrics`, and how well it names a worker that is slowed on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import click

from ..experiment import Column, Experiment, Finished, Job, Row, above, below, placements
from ..options import names_option
from ..overhead.shapes import SHAPES
from ..overhead.statistics import median_interval

MOST_COST = 1.01
NAMED_RIGHT = 0.95
MOST_FALSE = 0.05
"""Bounds of: the ratio of step times; shares of trials; alarms in each window with no slow worker."""

SLOWED = ("data", "forward", "backward")
_STUDIES = ("cost", "stragglers")
_STRATEGIES = ("ddp", "horovod", "deepspeed_zero_3", "fsdp", "tf_multiworker", "tf_horovod")

_LABELS = (Column("strategy"), Column("workers"), Column("frontend"), Column("model"))


class Metrics(Experiment):
    """Trains with the callback and without it in turns; and slows one worker by 20 % of a step, in one phase.

    Rows of the cost: the median over pairs of turns of with / without, and its 95 % interval, on the slowest worker.
    Rows of stragglers: in how many trials the right worker was named within 20 steps, in how many with the right cause,
    after how many steps (the median), and alarms in the windows in which no worker was slow.
    """

    cost_columns = (
        *_LABELS,
        Column("step_ms", ".1f"),
        Column("cost_ratio", ".4f"),
        Column("cost_low", ".4f"),
        Column("cost_high", ".4f"),
    )
    slowed_columns = (
        *_LABELS,
        Column("slowed"),
        Column("trials"),
        Column("named_right", ".2f"),
        Column("cause_right", ".2f"),
        Column("named_after_steps", ".0f"),
    )
    quiet_columns = (
        *_LABELS,
        Column("calm_step_ms", ".1f"),
        Column("other_share", ".3f"),
        Column("windows"),
        Column("false_alarms"),
    )
    columns = tuple(dict.fromkeys((*cost_columns, *slowed_columns, *quiet_columns)))
    options = (
        names_option("--studies", "study", _STUDIES, "Run these only."),
        click.Option(
            ["--trials"], type=click.IntRange(min=1), default=5, show_default=True, help="Trials of each slowed phase."
        ),
        click.Option(
            ["--pairs"], type=click.IntRange(min=1), default=30, show_default=True, help="Pairs of turns to time."
        ),
        click.Option(
            ["--cost-model"], type=click.Choice([*SHAPES]), default="medium", show_default=True, help="Model to time."
        ),
        click.Option(
            ["--slowed-model"],
            type=click.Choice([*SHAPES]),
            default="large",
            show_default=True,
            help="Model to slow.",
        ),
    )
    strategies = _STRATEGIES

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        asked: dict[str, dict[str, Any]] = {
            "cost": {"model": options["cost_model"], "pairs": options["pairs"]},
            "stragglers": {"model": options["slowed_model"], "trials": options["trials"]},
        }
        return [
            Job(strategy, number, {"study": study, **asked[study]}, timeout=3600)
            for study in options["studies"]
            for strategy, number in placements(strategies, workers)
            if number > 1
        ]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        if options["study"] == "cost":
            from .cost import measure

            return measure(strategy, options["model"], options["pairs"], options["folder"])
        from .slowed import measure as measure_slowed

        return measure_slowed(strategy, options["model"], options["trials"], options["folder"])

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        costs = [cost_row(done) for done in finished if done.job.options["study"] == "cost"]
        slowed = [done for done in finished if done.job.options["study"] == "stragglers"]
        return [*costs, *(row for done in slowed for row in straggler_rows(done))]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            if "cost_ratio" in row:
                failures += above(row, "cost_ratio", MOST_COST)
            elif "windows" in row:
                failures += above(row, "false_alarms", MOST_FALSE * row["windows"])
            else:
                failures += below(row, "named_right", NAMED_RIGHT) + below(row, "cause_right", NAMED_RIGHT)
        return failures


def cost_row(done: Finished) -> Row:
    """Return the row of a job: each worker's seconds per step in turns, with the callback and without it."""
    slowest = max(done.results, key=lambda own: median(_ratios(own)))
    ratios = _ratios(slowest)
    low, high = median_interval(ratios)
    return {
        **_labels(done),
        "step_ms": 1000 * median(slowest["without"]),
        "cost_ratio": median(ratios),
        "cost_low": low,
        "cost_high": high,
    }


def straggler_rows(done: Finished) -> list[Row]:
    """Return a row for each slowed phase, and one for the windows without a slow worker, from rank 0's result."""
    found = done.results[0]
    rows: list[Row] = []
    for slowed in SLOWED:
        trials = [trial for trial in found["trials"] if trial["slowed"] == slowed]
        named = [trial for trial in trials if trial["named"] == trial["rank"]]
        rows.append(
            {
                **_labels(done),
                "slowed": slowed,
                "trials": len(trials),
                "named_right": len(named) / len(trials),
                "cause_right": sum(trial["cause"] == slowed for trial in named) / len(trials),
                "named_after_steps": median(trial["after"] for trial in named) if named else None,
            }
        )
    quiet = {name: found[name] for name in ("other_share", "windows", "false_alarms")}
    rows.append({**_labels(done), "calm_step_ms": found["step_ms"], **quiet})
    return rows


def _ratios(own: Mapping[str, Sequence[float]]) -> list[float]:
    return [one / other for one, other in zip(own["with"], own["without"], strict=True)]


def _labels(done: Finished) -> Row:
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "frontend": "loop",
        "model": done.job.options["model"],
    }
