"""`parity`: every variant of one small program, on each engine, against plain code in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ...plugins.conformance.variants import DTYPES, LOSS_BOUND, VARIANTS, WEIGHT_BOUND
from ..experiment import Column, Experiment, Finished, Job, Row, above, placements


class Parity(Experiment):
    """Holds losses and weights of 100 steps against a reference that shares neither sampler nor step with the engines.

    Rows: `max_loss_diff`, the largest |loss - reference| / max(1, |reference|) of any step, on any worker;
    `max_weight_diff`, the largest distance by norm of a weight tensor after the last step, relative to the tensor; and
    beside them the floor: the same figures for the reference cut into as many parts, in one process.
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("variant"),
        Column("dtype"),
        Column("max_loss_diff", ".1e"),
        Column("max_weight_diff", ".1e"),
        Column("floor_loss_diff", ".1e"),
        Column("floor_weight_diff", ".1e"),
    )

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        return [Job(strategy, number) for strategy, number in placements(strategies, workers)]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        from ...adapters import create_strategy
        from ...plugins.conformance.curves import run_variant

        curves = {}
        with create_strategy(strategy) as joined:
            for variant in VARIANTS:
                for dtype in sorted(joined.capabilities.dtypes & set(DTYPES)):
                    curve = run_variant(joined, variant, dtype)
                    weights = {name: weight.tolist() for name, weight in curve.weights.items()}
                    curves[f"{variant}/{dtype}"] = {"losses": curve.losses, "weights": weights}
            return {"framework": joined.capabilities.framework, "curves": curves}

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        return [_row(done, *found.split("/")) for done in finished for found in done.results[0]["curves"]]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            failures += above(row, "max_loss_diff", LOSS_BOUND[row["dtype"]])
            failures += above(row, "max_weight_diff", WEIGHT_BOUND[row["dtype"]])
        return failures


def _row(done: Finished, variant: str, dtype: str) -> Row:
    import numpy as np

    from ...plugins.conformance.curves import Curve
    from ...plugins.conformance.framework import reference_curve

    framework = done.results[0]["framework"]
    # TensorFlow, imported here only for references of its own, tells of its processor features and graphs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    reference = reference_curve(framework, variant, dtype)
    # The floor cuts a batch into what one worker holds at a time; a single piece would be the reference itself.
    floor = reference_curve(framework, variant, dtype, max(2, done.job.workers * VARIANTS[variant].accumulate))
    curves = []
    for result in done.results:
        found = result["curves"][f"{variant}/{dtype}"]
        weights = {name: np.array(weight) for name, weight in found["weights"].items()}
        curves.append(Curve(tuple(found["losses"]), weights))
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "variant": variant,
        "dtype": dtype,
        "max_loss_diff": max(reference.loss_diff(curve) for curve in curves),
        "max_weight_diff": max(reference.weight_diff(curve) for curve in curves),
        "floor_loss_diff": reference.loss_diff(floor),
        "floor_weight_diff": reference.weight_diff(floor),
    }
