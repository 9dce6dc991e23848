"""`overhead`: what one step costs beside the same step written by hand on the raw engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import click

from ...adapters.errors import OptionError, did_you_mean
from ..experiment import Column, Experiment, Finished, Job, Row, above, placements
from .statistics import median_interval

BOUNDS = {"medium": 1.05, "large": 1.03}  # of the ratio, where there is more than one worker
_MODELS = ("small", "medium", "large")


def _zero(stage: int, offload: bool) -> dict[str, Any]:
    cpu = {"device": "cpu", "pin_memory": False}
    sections = {"offload_optimizer": cpu} if offload else {}
    sections |= {"offload_param": cpu} if offload and stage == 3 else {}
    return {"stage": stage, "reduce_bucket_size": 500_000, "overlap_comm": False, **sections}


# Both sides get these, written out: a default of ours that changes must not make the comparison unequal.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "local": {},
    "ddp": {"gradient_as_bucket_view": True, "find_unused_parameters": True},
    "fsdp": {"wrap": 100_000},
    "horovod": {},
    **{
        f"deepspeed_zero_{stage}{kind}": {"config": {"zero_optimization": _zero(stage, offload=bool(kind))}}
        for stage, kind in ((1, ""), (2, ""), (3, ""), (2, "_offload"), (3, "_offload"))
    },
}


def _models(_ctx: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
    models = [name.strip() for name in text.split(",")]
    for name in models:
        if name not in _MODELS:
            known = ", ".join(_MODELS)
            raise OptionError(f"there is no model {name!r}.{did_you_mean(name, _MODELS)} There are: {known}")
    return models


class Overhead(Experiment):
    """Times our step and the raw one in pairs.

    Rows: the median of each side's step in ms, on rank 0; the median over pairs of ours / raw, and the 95 % interval of
    that median.
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("model"),
        Column("step_ms", ".2f"),
        Column("raw_step_ms", ".2f"),
        Column("ratio", ".3f"),
        Column("ratio_low", ".3f"),
        Column("ratio_high", ".3f"),
    )
    options = (
        click.Option(
            ["--models"],
            metavar="A,B",
            default=",".join(_MODELS),
            show_default=True,
            callback=_models,
            help="Time these only.",
        ),
        click.Option(
            ["--pairs"], type=click.IntRange(min=1), default=200, show_default=True, help="Pairs of steps to time."
        ),
    )
    strategies = tuple(_OPTIONS)

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        # One job a model: what an earlier one leaves in memory would be there for the next.
        return [
            Job(strategy, number, {"model": model, "pairs": options["pairs"]})
            for strategy, number in placements(strategies, workers)
            for model in options["models"]
        ]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        from .bench import bench

        return bench(strategy, options["model"], options["pairs"], _OPTIONS[strategy])

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        return [_row(done) for done in finished]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            if row["workers"] > 1 and row["model"] in BOUNDS:
                failures += above(row, "ratio", BOUNDS[row["model"]])
        return failures


def _row(done: Finished) -> Row:
    ours, raw = done.results[0]["ours"], done.results[0]["raw"]
    ratios = [our / their for our, their in zip(ours, raw, strict=True)]
    low, high = median_interval(ratios)
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "model": done.job.options["model"],
        "step_ms": 1000 * median(ours),
        "raw_step_ms": 1000 * median(raw),
        "ratio": median(ratios),
        "ratio_low": low,
        "ratio_high": high,
    }
