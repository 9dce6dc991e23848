"""`overhead`: the cost of our step, compared with a hand-written one on the raw engine, and of `fit`, with a loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import click

from ...adapters.registry import strategy_row
from ..experiment import Column, Experiment, Finished, Job, Row, above, placements
from ..options import frontends_option, names_option
from .statistics import median_interval

BOUNDS = {  # of the ratio, with more than one worker
    "loop": {"medium": 1.05, "large": 1.03},
    "lightning": {"medium": 1.10, "large": 1.05},
    "keras": {"medium": 1.10, "large": 1.05},
}
_MODELS = ("small", "medium", "large")
_LIGHTNINGS_OWN = "ddp"  # Lightning's own strategy: the cost of Lightning itself, without a bound


def _zero(stage: int, offload: bool) -> dict[str, Any]:
    cpu = {"device": "cpu", "pin_memory": False}
    sections = {"offload_optimizer": cpu} if offload else {}
    sections |= {"offload_param": cpu} if offload and stage == 3 else {}
    return {"stage": stage, "reduce_bucket_size": 500_000, "overlap_comm": False, **sections}


# Both sides get these explicitly, so that a change of our defaults does not make the comparison unequal.
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "local": {},
    "ddp": {"gradient_as_bucket_view": True, "find_unused_parameters": True},
    "fsdp": {"wrap": 100_000},
    "horovod": {},
    **{
        f"deepspeed_zero_{stage}{kind}": {"config": {"zero_optimization": _zero(stage, offload=bool(kind))}}
        for stage, kind in ((1, ""), (2, ""), (3, ""), (2, "_offload"), (3, "_offload"))
    },
    "tf_local": {},
    "tf_multiworker": {"communication": "auto", "bytes_per_pack": 0},
    "tf_horovod": {},
}
_FRONTENDS = {  # and the strategies on which they are timed
    "loop": tuple(_OPTIONS),
    "lightning": (_LIGHTNINGS_OWN, "horovod", "deepspeed_zero_1", "deepspeed_zero_2", "deepspeed_zero_3"),
    "keras": ("tf_local", "tf_multiworker", "tf_horovod"),
}


class Overhead(Experiment):
    """Times our step and the raw one in pairs; and epochs of a frontend's `fit`, and of a loop of our steps, in pairs.

    Rows: the median of each side's step in ms, on rank 0; the median over pairs of ours / raw, and its 95 % interval.
    For frontends other than "loop", "raw" is our loop on the same engine; but "lightning (own)" is Lightning's own
    strategy, compared with the raw engine.
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("frontend"),
        Column("model"),
        Column("step_ms", ".2f"),
        Column("raw_step_ms", ".2f"),
        Column("ratio", ".3f"),
        Column("ratio_low", ".3f"),
        Column("ratio_high", ".3f"),
    )
    options = (
        names_option("--models", "model", _MODELS, "Time these only."),
        frontends_option(
            tuple(_FRONTENDS),
            "Time these only: loop compares our step with the raw one; lightning and keras compare fit with our loop.",
        ),
        click.Option(
            ["--pairs"], type=click.IntRange(min=1), default=200, show_default=True, help="Pairs of steps to time."
        ),
    )
    strategies = tuple(_OPTIONS)

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        # One job per model, so that none inherits another's memory.
        return [
            Job(strategy, number, {"model": model, "frontend": frontend, "pairs": options["pairs"]})
            for frontend in options["frontends"]
            for strategy, number in placements(strategies, workers)
            if strategy in _FRONTENDS[frontend]
            for model in options["models"]
        ]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        model, pairs, engine_options = options["model"], options["pairs"], _OPTIONS[strategy]
        if options["frontend"] == "lightning":
            from .fit_lightning import bench_fit as bench_fit_lightning

            return bench_fit_lightning(strategy, model, pairs, engine_options)
        if options["frontend"] == "keras":
            from .fit import bench_fit

            return bench_fit(strategy, model, pairs, engine_options)
        if strategy_row(strategy).framework == "tensorflow":
            from .bench_keras import bench as bench_keras

            return bench_keras(strategy, model, pairs, engine_options)
        from .bench import bench

        return bench(strategy, model, pairs, engine_options)

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        return [_row(done) for done in finished]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            bounds = BOUNDS.get(row["frontend"], {})
            if row["workers"] > 1 and row["model"] in bounds:
                failures += above(row, "ratio", bounds[row["model"]])
        return failures


def _row(done: Finished) -> Row:
    ours, raw = done.results[0]["ours"], done.results[0]["raw"]
    ratios = [our / their for our, their in zip(ours, raw, strict=True)]
    low, high = median_interval(ratios)
    frontend = done.job.options["frontend"]
    own = frontend == "lightning" and done.job.strategy == _LIGHTNINGS_OWN
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "frontend": f"{frontend} (own)" if own else frontend,
        "model": done.job.options["model"],
        "step_ms": 1000 * median(ours),
        "raw_step_ms": 1000 * median(raw),
        "ratio": median(ratios),
        "ratio_low": low,
        "ratio_high": high,
    }
