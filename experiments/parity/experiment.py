"""`parity`: every variant of one small program, on each engine, compared with plain code in one process."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...plugins.conformance.lightning.variants import STRATEGIES as LIGHTNING_STRATEGIES
from ...plugins.conformance.lightning.variants import VARIANTS as LIGHTNING_VARIANTS
from ...plugins.conformance.variants import DTYPES, LOSS_BOUND, VARIANTS, WEIGHT_BOUND
from ..experiment import Column, Experiment, Finished, Job, Row, above, placements
from ..options import frontends_option, names_option

if TYPE_CHECKING:
    from ...plugins.conformance.curves import Curve

_FRONTENDS = ("loop", "lightning")
_ALL_VARIANTS = tuple(dict.fromkeys([*VARIANTS, *LIGHTNING_VARIANTS]))


class Parity(Experiment):
    """Compares losses and weights of 100 steps with a reference that shares neither sampler nor step with the engines.

    Lightning's reference is its own Trainer on one device, with N times the batch size.

    Rows: `max_loss_diff`, the largest |loss - reference| / max(1, |reference|) of any step, on any worker;
    `max_weight_diff`, the largest distance by norm of a weight tensor after the last step, relative to the tensor; and
    the floor of both: the same figures for the reference with its batches split in the same way, in one process.
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("frontend"),
        Column("variant"),
        Column("dtype"),
        Column("max_loss_diff", ".1e"),
        Column("max_weight_diff", ".1e"),
        # Shorter, so that the table fits into 80 characters.
        Column("floor_loss_diff", ".0e"),
        Column("floor_weight_diff", ".0e"),
    )
    options = (
        frontends_option(
            _FRONTENDS,
            "Compare these only: loop is a loop of our steps; lightning is its Trainer, compared with one device.",
        ),
        names_option(
            "--variants",
            "variant",
            _ALL_VARIANTS,
            f"Train these only, of {', '.join(_ALL_VARIANTS)}.  [default: all]",
            show_default=False,
        ),
    )

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        return [
            Job(strategy, number, {"frontend": frontend, "variants": options["variants"]})
            for frontend in options["frontends"]
            for strategy, number in placements(strategies, workers)
            if frontend != "lightning" or strategy in LIGHTNING_STRATEGIES
        ]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        train = _train_by_lightning if options["frontend"] == "lightning" else _train_by_loop
        framework, curves = train(strategy, options["variants"])
        found = {}
        for name, curve in curves.items():
            weights = {parameter: weight.tolist() for parameter, weight in curve.weights.items()}
            found[name] = {"losses": curve.losses, "weights": weights}
        return {"framework": framework, "curves": found}

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        return [_row(done, *found.split("/")) for done in finished for found in done.results[0]["curves"]]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            failures += above(row, "max_loss_diff", LOSS_BOUND[row["dtype"]])
            failures += above(row, "max_weight_diff", WEIGHT_BOUND[row["dtype"]])
        return failures


def _train_by_loop(strategy: str, variants: Sequence[str]) -> tuple[str, dict[str, Curve]]:
    """Return the strategy's framework, and its curves by "variant/dtype"."""
    from ...adapters import create_strategy
    from ...plugins.conformance.curves import run_variant

    with create_strategy(strategy) as joined:
        dtypes = sorted(joined.capabilities.dtypes & set(DTYPES))
        asked = [(variant, dtype) for variant in VARIANTS if variant in variants for dtype in dtypes]
        curves = {f"{variant}/{dtype}": run_variant(joined, variant, dtype) for variant, dtype in asked}
        return joined.capabilities.framework, curves


def _train_by_lightning(strategy: str, variants: Sequence[str]) -> tuple[str, dict[str, Curve]]:
    """As `_train_by_loop`."""
    from ...adapters import create_strategy
    from ...plugins.conformance.lightning.training import run_variant

    described = create_strategy(strategy)  # the Trainer joins with its own
    workers, dtypes = described.worker.world_size, sorted(described.capabilities.dtypes & set(DTYPES))
    asked = [(variant, dtype) for variant in LIGHTNING_VARIANTS if variant in variants for dtype in dtypes]
    curves = {f"{variant}/{dtype}": run_variant(strategy, workers, variant, dtype) for variant, dtype in asked}
    return described.capabilities.framework, curves


def _references(done: Finished, variant: str, dtype: str) -> tuple[Curve, Curve]:
    """Return the reference, and the floor: the reference with its batches split as the workers split them."""
    workers = done.job.workers
    # At least two: one would be the reference itself.
    if done.job.options["frontend"] == "lightning":
        from ...plugins.conformance.lightning.reference import reference_curve as lightning_curve

        floor = lightning_curve(variant, dtype, workers, max(2, workers))
        return lightning_curve(variant, dtype, workers), floor
    from ...plugins.conformance.framework import reference_curve

    framework = done.results[0]["framework"]
    pieces = max(2, workers * VARIANTS[variant].accumulate)
    return reference_curve(framework, variant, dtype), reference_curve(framework, variant, dtype, pieces)


def _row(done: Finished, variant: str, dtype: str) -> Row:
    import numpy as np

    from ...plugins.conformance.curves import Curve

    # TensorFlow is imported here only for its own references; silence its logs of processor features and graphs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    reference, floor = _references(done, variant, dtype)
    curves = []
    for result in done.results:
        found = result["curves"][f"{variant}/{dtype}"]
        weights = {name: np.array(weight) for name, weight in found["weights"].items()}
        curves.append(Curve(tuple(found["losses"]), weights))
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "frontend": done.job.options["frontend"],
        "variant": variant,
        "dtype": dtype,
        "max_loss_diff": max(reference.loss_diff(curve) for curve in curves),
        "max_weight_diff": max(reference.weight_diff(curve) for curve in curves),
        "floor_loss_diff": reference.loss_diff(floor),
        "floor_weight_diff": reference.weight_diff(floor),
    }
