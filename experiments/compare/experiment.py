"""`compare`: the same program under each strategy, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any

import click

from ...adapters.registry import Requirement, strategy_row
from ...plugins.conformance.variants import LOSS_BOUND
from ..curve import max_loss_diff
from ..experiment import Column, Experiment, Finished, Job, Row, above, below, placements
from .memory_bounds import STATE_TOLERANCE, expected_state_bytes

ACCURACY = 0.97
_REFERENCES = {"torch": "local", "tensorflow": "tf_local"}  # initial weights differ between frameworks
_WARM_UP = 5  # untimed steps: engines do their set-up in the first ones


class Compare(Experiment):
    """Trains a convolutional network on scikit-learn's digits.

    Rows: the accuracy on 297 held-out scans; `samples_per_s` of all workers together; the median and the 95th
    percentile of a step in ms, loading its data included; the largest worker's peak memory in MB; the largest
    difference of the loss from one process of the same framework, relative to max(1, |loss|); and, for a model of 10
    million parameters, the bytes per parameter that the largest worker holds for parameters, gradients and Adam, and
    the expected bytes (not under TensorFlow, whose gradients are inside the compiled step and cannot be counted).
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("test_accuracy", ".3f"),
        Column("samples_per_s", ",.0f"),
        Column("step_ms", ".2f"),
        Column("step_ms_p95", ".1f"),
        Column("peak_mb", ",.0f"),
        Column("max_loss_diff", ".1e"),
        Column("state_bytes", ".1f"),
        Column("state_bytes_due", ".1f"),
    )
    options = (
        click.Option(
            ["--epochs"], type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the data."
        ),
    )
    requirements = (Requirement("scikit-learn", "sklearn", "pip install scikit-learn"),)

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        # The references of the frameworks come first, requested or not.
        ordered = dict.fromkeys([*(_reference(strategy) for strategy in strategies), *strategies])
        return [Job(strategy, number, options) for strategy, number in placements(ordered, workers)]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        from .measure import measure

        return measure(strategy, options["epochs"])

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        curves = {done.job.strategy: done.results[0]["losses"] for done in finished}
        return [_row(done, curves.get(_reference(done.job.strategy))) for done in finished]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            failures += below(row, "test_accuracy", ACCURACY)
            failures += above(row, "max_loss_diff", LOSS_BOUND["float32"])
            if row["state_bytes_due"] is not None:
                failures += above(row, "state_bytes", row["state_bytes_due"] * (1 + STATE_TOLERANCE))
                failures += below(row, "state_bytes", row["state_bytes_due"] * (1 - STATE_TOLERANCE))
        return failures


def _reference(strategy: str) -> str:
    return _REFERENCES[strategy_row(strategy).framework]


def _row(done: Finished, reference: Sequence[float] | None) -> Row:
    main = done.results[0]
    seconds, samples = main["seconds"][_WARM_UP:], main["samples"][_WARM_UP:]
    # Compare every worker's loss with the reference: it must be the same number on all workers.
    diffs = [] if reference is None else [max_loss_diff(result["losses"], reference) for result in done.results]
    held = [result["state_bytes"] for result in done.results if result["state_bytes"] is not None]
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "test_accuracy": main["test_accuracy"],
        "samples_per_s": sum(samples) / sum(seconds),
        "step_ms": 1000 * median(seconds),
        "step_ms_p95": 1000 * quantiles(seconds, n=20)[-1],
        "peak_mb": max(result["peak_mb"] for result in done.results),
        "max_loss_diff": max(diffs) if diffs else None,
        "state_bytes": max(held, default=None),
        "state_bytes_due": expected_state_bytes(done.job.strategy, done.job.workers),
    }
