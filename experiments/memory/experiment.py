"""`memory`: what gradient checkpointing saves, what it costs, and that it changes nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ...adapters.registry import strategy_row
from ..curve import max_loss_diff
from ..experiment import Column, Experiment, Finished, Job, Row, above, below, placements
from ..options import some_of
from ..peak import FREE_AT_ONCE
from .settings import BLOCKS, NATIVE, PLAIN, setting, settings_of
from .shapes import DEFAULT, SHAPES

_MIB = 2**20 / 1e6
PEAK_RATIO = 1.03  # of all blocks, to the framework's own switch
STEP_RATIO = 1.05
PREDICTION = 0.05
RESIDENT = {"torch": 1.05, "tensorflow": 1.10}  # of the prediction, and 32 MiB
ADDED = {"0.5": 0.8, "operators 0.5": 0.5}  # of the time that all blocks add
DIFFERENCE = 1e-6  # where it is not 0
_ALWAYS_FITS = 0.5  # a share of the activations


class Memory(Experiment):
    """Trains models in each setting, each in a process of its own.

    Rows, of the worker with most: `activation_mb`, activations that live when a backward pass begins (not under
    TensorFlow, whose compiled steps have them inside); `predicted_mb`, what the plan of a budget expects; `peak_mb`,
    the growth of memory in a step, of the allocator's on CUDA, else resident; `step_ms`, the median; `loss_diff` and
    `grad_diff`, the largest difference from "none" in a loss, and in what three steps of SGD changed. A budget that
    does not fit has dashes. `--json` also has `budget_mb`, `native_peak_mb` and `native_step_ms` (PyTorch's
    `checkpoint` or `keras.remat` around each block), `added_share` (of the time that all blocks add) and `device`.
    """

    columns = (
        Column("strategy"),
        Column("workers"),
        Column("model"),
        Column("setting"),
        Column("activation_mb", ",.0f"),
        Column("predicted_mb", ",.0f"),
        Column("peak_mb", ",.0f"),
        Column("step_ms", ",.0f"),
        Column("loss_diff", ".1e"),
        Column("grad_diff", ".1e"),
    )
    options = (
        click.Option(
            ["--models"],
            metavar="A,B",
            default=",".join(DEFAULT),
            show_default=True,
            callback=some_of("model", tuple(SHAPES)),
            help=f"Train these: {', '.join(SHAPES)} (a transformer of a billion parameters, for a GPU).",
        ),
        click.Option(
            ["--settings"],
            metavar="A,B",
            default="operators,0.25,0.5,0.75,operators 0.5",
            show_default=True,
            callback=settings_of,
            help="Beside none, native and blocks: operators (PyTorch), offload (CUDA), or budgets, for example 0.5.",
        ),
        click.Option(
            ["--steps"], type=click.IntRange(min=1), default=7, show_default=True, help="Steps to take the median of."
        ),
    )

    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        # The settings that others are compared with come first.
        return [
            Job(strategy, number, {"model": model, "setting": name, "steps": options["steps"]}, env=FREE_AT_ONCE)
            for strategy, number in placements(strategies, workers)
            for model in options["models"]
            for name in options["settings"]
            if strategy_row(strategy).framework == "torch" or "operators" not in name
        ]

    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        from .measure import measure

        return measure(strategy, options["model"], options["setting"], options["steps"], Path(options["folder"]))

    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        known = {_key(done, done.job.options["setting"]): done for done in finished}
        return [
            _row(done, *(known.get(_key(done, reference)) for reference in (PLAIN, NATIVE, BLOCKS)))
            for done in finished
        ]

    def judge(self, rows: Sequence[Row]) -> list[str]:
        failures = []
        for row in rows:
            if row["setting"] in (PLAIN, NATIVE):
                continue
            share = setting(row["setting"]).share
            if row["peak_mb"] is None and share is not None and share < _ALWAYS_FITS:
                continue  # refused
            failures += _judge(row, share)
        return failures + _not_monotone(rows)


def _key(done: Finished, name: str) -> tuple[str, int, str, str]:
    return done.job.strategy, done.job.workers, done.job.options["model"], name


def _row(done: Finished, plain: Finished | None, native: Finished | None, blocks: Finished | None) -> Row:
    def most(of: Finished | None, name: str, unit: float) -> float | None:
        values = [result.get(name) for result in of.results] if of is not None else []
        known = [value for value in values if value is not None]
        return max(known) / unit if known else None

    seconds, least, all_of_it = (most(of, "seconds", 1) for of in (done, plain, blocks))
    added = None
    if seconds is not None and least is not None and all_of_it is not None and all_of_it > least:
        added = (seconds - least) / (all_of_it - least)
    loss_diff = None
    if plain is not None and "losses" in done.results[0]:
        loss_diff = max_loss_diff(done.results[0]["losses"], plain.results[0]["losses"])
    return {
        "strategy": done.job.strategy,
        "workers": done.job.workers,
        "model": done.job.options["model"],
        "setting": done.job.options["setting"],
        "activation_mb": most(done, "activations", 1e6),
        "predicted_mb": most(done, "predicted_bytes", 1e6),
        "peak_mb": most(done, "peak", 1e6),
        "step_ms": most(done, "seconds", 1e-3),
        "loss_diff": loss_diff,
        "grad_diff": most(done, "grad_diff", 1),
        "budget_mb": most(done, "budget", 1e6),
        "native_peak_mb": most(native, "peak", 1e6),
        "native_step_ms": most(native, "seconds", 1e-3),
        "added_share": added,
        "device": done.results[0].get("device"),
    }


def _judge(row: Row, share: float | None) -> list[str]:
    framework = strategy_row(row["strategy"]).framework
    exact = framework == "torch" and row["workers"] <= 2 and row["device"] == "cpu"
    failures = []
    for name in ("loss_diff", "grad_diff"):
        failures += above(row, name, 0 if exact else DIFFERENCE)
    if row["setting"] == BLOCKS and row["native_peak_mb"] is not None:
        failures += above(row, "peak_mb", PEAK_RATIO * row["native_peak_mb"])
        failures += above(row, "step_ms", STEP_RATIO * row["native_step_ms"])
    if share is None:
        return failures
    failures += above(row, "predicted_mb", row["budget_mb"] or 0)
    if row["predicted_mb"] is None:
        return failures
    if framework == "torch":
        failures += above(row, "activation_mb", row["budget_mb"])
        failures += above(row, "activation_mb", (1 + PREDICTION) * row["predicted_mb"])
        failures += below(row, "activation_mb", (1 - PREDICTION) * row["predicted_mb"])
    failures += above(row, "peak_mb", RESIDENT[framework] * row["predicted_mb"] + 32 * _MIB)
    if row["setting"] in ADDED:
        failures += above(row, "added_share", ADDED[row["setting"]])
    return failures


def _not_monotone(rows: Sequence[Row]) -> list[str]:
    """Return a line for each budget that takes more than a larger one."""
    series: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        name = row["setting"]
        if name not in (PLAIN, NATIVE) and setting(name).share is not None and row["predicted_mb"] is not None:
            kind = name.rpartition(" ")[0]
            series.setdefault((row["strategy"], row["workers"], row["model"], kind), []).append(row)
    failures = []
    for group in series.values():
        ordered = sorted(group, key=lambda row: setting(row["setting"]).share or 0)
        for small, large in itertools.pairwise(ordered):
            for name in ("activation_mb", "predicted_mb"):
                if large[name] is not None:
                    failures += above(small, name, large[name])
    return failures
