"""`checkpoint`: every engine loads what each other saved; and the cost of saving and loading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from ...adapters.registry import strategy_row
from ...plugins.conformance.variants import LOSS_BOUND, WEIGHT_BOUND
from ..experiment import Column, Experiment, Finished, Job, Row, above, below, placements
from ..peak import FREE_AT_ONCE
from .bounds import JUDGED_MB, LAYER_BYTES, SAVE_RATIO, SHARDING, layers_for, peak_ratio_bound

_PAIRS, _THROUGHPUT = "pairs", "throughput"
_SAVE, _LOAD, _TIME_SAVES, _TIME_LOAD = "save", "load all", "time saves", "time load"
_DTYPE = "float32"


class Checkpoint(Experiment):
    """Trains half of a curve under each strategy, and the other half under each, from every checkpoint.

    Rows of pairs: `max_loss_diff`, the largest |loss - reference| / max(1, |reference|) of any step after resuming, on
    any worker, against plain code in one process; `max_weight_diff`, the largest distance by norm of a weight tensor
    after the last step, relative to the tensor.

    Rows of throughput, for one state: its MB (1e6 bytes; parameters and Adam, each once); the medians of MB per second
    saved by all workers together, ours and plain torch.distributed.checkpoint's; the median over pairs of ours / raw;
    MB loaded per second; and the peak bytes of a worker in a save or a load, the larger one, over the bytes of its
    shard. If the engine shards the whole state, `peak_ratio_bound` is the bound.
    """

    pair_columns = (
        Column("saved_with"),
        Column("saved_workers"),
        Column("loaded_with"),
        Column("loaded_workers"),
        Column("max_loss_diff", ".1e"),
        Column("max_weight_diff", ".1e"),
    )
    throughput_columns = (
        Column("strategy"),
        Column("workers"),
        Column("state_mb", ",.0f"),
        Column("save_mb_s", ",.0f"),
        Column("raw_save_mb_s", ",.0f"),
        Column("save_ratio", ".2f"),
        Column("load_mb_s", ",.0f"),
        Column("peak_ratio", ".2f"),
        Column("peak_ratio_bound", ".2f"),
    )
    columns = (*pair_columns, *throughput_columns)
    options = (
        click.Option(["--only"], type=click.Choice([_PAIRS, _THROUGHPUT]), help="Leave out the other kind of rows."),
        click.Option(
            ["--throughput-workers"],
            type=click.IntRange(min=1),
            default=2,
            show_default=True,
            help="Workers that save and load the large state.",
        ),
        click.Option(
            ["--state-mb"],
            type=click.IntRange(min=1),
            default=JUDGED_MB,
            show_default=True,
            help=f"Size of that state, parameters and optimizer. Below {JUDGED_MB} no throughput is judged.",
        ),
        click.Option(
            ["--saves"], type=click.IntRange(min=1), default=21, show_default=True, help="Pairs of saves to time."
        ),
    )
    strategies = ("local", "ddp", "horovod", "fsdp", "deepspeed_zero_1", "deepspeed_zero_2", "deepspeed_zero_3")
    workers = "1,2,3"

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        jobs: list[Job] = []
        if options["only"] != _THROUGHPUT:
            placed = list(placements(strategies, workers))
            jobs += [Job(strategy, number, {"task": _SAVE}) for strategy, number in placed]
            jobs += [Job(strategy, number, {"task": _LOAD, "saved": placed}) for strategy, number in placed]
        if options["only"] != _PAIRS:
            large = {"layers": layers_for(options["state_mb"]), "saves": options["saves"]}
            # Separate jobs: memory left over from a save would help the load.
            jobs += [
                Job(strategy, number, {"task": task, **large}, env=FREE_AT_ONCE)
                for strategy, number in placements(strategies, [options["throughput_workers"]])
                for task in (_TIME_SAVES, _TIME_LOAD)
            ]
        return jobs

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        folder = Path(options["folder"])
        if options["task"] in (_SAVE, _LOAD):
            from .pairs import resume_all, save

            return (
                save(strategy, folder) if options["task"] == _SAVE else resume_all(strategy, options["saved"], folder)
            )
        from .large import time_load, time_saves

        if options["task"] == _TIME_SAVES:
            return time_saves(strategy, options["layers"], options["saves"], folder)
        return time_load(strategy, options["layers"], folder)

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        loaded = [done for done in finished if done.job.options["task"] == _LOAD]
        pairs = [_pair(done, number) for done in loaded for number in range(len(done.job.options["saved"]))]
        timed: dict[tuple[str, int], dict[str, Finished]] = {}
        for done in finished:
            if done.job.options["task"] in (_TIME_SAVES, _TIME_LOAD):
                timed.setdefault((done.job.strategy, done.job.workers), {})[done.job.options["task"]] = done
        pairs.sort(key=lambda row: (row["saved_with"], row["saved_workers"]))
        return pairs + [_throughput(done.get(_TIME_SAVES), done.get(_TIME_LOAD)) for done in timed.values()]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            if "saved_with" in row:
                failures += above(row, "max_loss_diff", LOSS_BOUND[_DTYPE])
                failures += above(row, "max_weight_diff", WEIGHT_BOUND[_DTYPE])
                continue
            if row["state_mb"] >= JUDGED_MB:
                failures += below(row, "save_ratio", SAVE_RATIO)
            if row["peak_ratio_bound"] is not None:
                failures += above(row, "peak_ratio", row["peak_ratio_bound"])
        return failures


def _pair(done: Finished, number: int) -> Row:
    import numpy as np

    from ...plugins.conformance.curves import Curve
    from ...plugins.conformance.framework import reference_curve
    from ...plugins.conformance.worker import SAVED_DTYPE, SAVED_STEPS, SAVED_VARIANT

    reference = reference_curve(strategy_row(done.job.strategy).framework, SAVED_VARIANT, SAVED_DTYPE)
    found = [result[number] for result in done.results]
    curves = [
        Curve(tuple(curve["losses"]), {name: np.array(weight) for name, weight in curve["weights"].items()})
        for curve in found
        if curve is not None
    ]
    saved_with, saved_workers = done.job.options["saved"][number]
    return {
        "saved_with": saved_with,
        "saved_workers": saved_workers,
        "loaded_with": done.job.strategy,
        "loaded_workers": done.job.workers,
        "max_loss_diff": max((reference.loss_diff(curve, SAVED_STEPS) for curve in curves), default=None),
        "max_weight_diff": max((reference.weight_diff(curve) for curve in curves), default=None),
    }


def _throughput(saves: Finished | None, load: Finished | None) -> Row:
    job = next(done.job for done in (saves, load) if done is not None)
    megabytes = job.options["layers"] * LAYER_BYTES / 1e6
    row: Row = {column.name: None for column in Checkpoint.throughput_columns}
    row |= {"strategy": job.strategy, "workers": job.workers, "state_mb": megabytes}
    if saves is not None:
        ours, raw = (_slowest(saves, side) for side in ("ours", "raw"))
        row["save_mb_s"] = megabytes / median(ours)
        row["raw_save_mb_s"] = megabytes / median(raw)
        row["save_ratio"] = median(theirs / our for our, theirs in zip(ours, raw, strict=True))
    if load is not None:
        row["load_mb_s"] = megabytes / max(result["load"] for result in load.results)
    if saves is not None and load is not None:
        row["peak_ratio"] = max(_peak_ratio(saves), _peak_ratio(load))
    if job.strategy in SHARDING:
        shards = [result["shard"] for done in (saves, load) if done is not None for result in done.results]
        row["peak_ratio_bound"] = peak_ratio_bound(max(shards))
    return row


def _slowest(done: Finished, side: str) -> list[float]:
    """Return the seconds of each save on the worker that took longest."""
    return [max(seconds) for seconds in zip(*(result[side] for result in done.results), strict=True)]


def _peak_ratio(done: Finished) -> float:
    return max(float(result["peak"] / result["shard"]) for result in done.results)
