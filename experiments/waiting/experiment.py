"""`waiting`: one worker is delayed before each step, and the others must wait that long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ..experiment import Column, Experiment, Finished, Job, Row, above, below, placements

LEAST, MOST = 0.8, 1.2


class Waiting(Experiment):
    """Delays the last worker, and measures the phase "wait" on all.

    Rows: the measured delay; the least and the most waiting of the other workers, in milliseconds: medians over steps,
    minus the minimum over all workers, which is the time of the collectives themselves; and both relative to the delay.
    The bounds are 0.8 and 1.2.
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("delay_ms", ".1f"),
        Column("least_ms", ".1f"),
        Column("most_ms", ".1f"),
        Column("least_share", ".2f"),
        Column("most_share", ".2f"),
    )
    options = (
        click.Option(
            ["--delay-ms"], type=click.FloatRange(min=1), default=30, show_default=True, help="How long to delay it."
        ),
        click.Option(
            ["--steps"], type=click.IntRange(min=5), default=40, show_default=True, help="Steps to take the median of."
        ),
    )
    workers = "2,3"

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        asked = {name: options[name] for name in ("delay_ms", "steps")}
        placed = placements(strategies, workers)
        return [Job(strategy, number, asked) for strategy, number in placed if number > 1]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        from .measure import measure

        return measure(strategy, options["delay_ms"] / 1000, options["steps"])

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        return [row(done.job.strategy, done.results) for done in finished]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for each in rows:
            failures += below(each, "least_share", LEAST)
            failures += above(each, "most_share", MOST)
        return failures


def row(strategy: str, results: Sequence[Mapping[str, float]]) -> Row:
    """Return the row of a job, from each worker's median wait and, of the last one, the delay; in seconds."""
    waits = [result["wait"] for result in results]
    others = [wait - min(waits) for wait in waits[:-1]]
    delay = results[-1]["delay"]
    return {
        "strategy": strategy,
        "workers": len(results),
        "delay_ms": 1000 * delay,
        "least_ms": 1000 * min(others),
        "most_ms": 1000 * max(others),
        "least_share": min(others) / delay,
        "most_share": max(others) / delay,
    }
