"""`memory`: what gradient checkpointing saves, what it costs, and that it changes nothing else."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ...adapters.registry import strategy_row
from ..curve import max_loss_diff
from ..experiment import Column, Experiment, Finished, Job, Row, above, below, failure, placements
from ..options import file_option, names_option
from ..peak import FREE_AT_ONCE
from .picture import picture_of
from .settings import BLOCKS, NATIVE, PLAIN, TORCH, setting, settings_of
from .shapes import DEFAULT, SHAPES

_MIB = 2**20 / 1e6
PEAK_RATIO = 1.03  # of all blocks, to the framework's own switch
STEP_RATIO = 1.05  # of a step, in pairs with the framework's own switch
PREDICTION = 0.05
RESIDENT = {"torch": 1.05, "tensorflow": 1.10}  # of the prediction, and 32 MiB
ADDED = {"0.5": 0.8, "operators 0.5": 0.5}  # of the time that all blocks add
DIFFERENCE = 1e-6  # where it is not 0
_ALWAYS_FITS = 0.5  # a share of the activations, where they are not counted


class Memory(Experiment):
    """Trains models in each setting, each in a process of its own.

    Rows, of the worker with most: `activation_mb`, activations that live when a backward pass begins (not under
    TensorFlow, whose compiled steps have them inside); `predicted_mb`, what the plan of a budget expects; `peak_mb`,
    the growth of memory in a step, of the allocator's on CUDA, else resident; `step_ms`, the median; `loss_diff` and
    `grad_diff`, the largest difference from "none" in a loss, and in what three steps of SGD changed. A budget that
    does not fit has dashes; that is a failure only if it is refused although all blocks take less. "torch 0.5" is
    PyTorch's own budget for a compiled model, which is not judged. `--json` also has `budget_mb`, `native_peak_mb` and
    `native_step_ms` (PyTorch's `checkpoint` or `keras.remat` around each block), `native_ratio` (the median of pairs of
    steps, ours by the native switch's, in one process), `added_share` (of the time that all blocks add), `least_share`
    (the share of activations that all blocks take), `refused` (why a budget was) and `device`.
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
        names_option(
            "--models",
            "model",
            tuple(SHAPES),
            f"Train these: {', '.join(SHAPES)} (a transformer of a billion parameters, for a GPU).",
            default=DEFAULT,
        ),
        click.Option(
            ["--settings"],
            metavar="A,B",
            default="operators,budgets,operators 0.5",
            show_default=True,
            callback=settings_of,
            help="Beside none, native and blocks: operators (PyTorch), offload (CUDA), budgets such as 0.5 or "
            "operators 0.5, budgets (0.1 to 1), torch (PyTorch's own budgets, which compile; with local only).",
        ),
        file_option(["--picture"], "Write a picture of memory against time here, in SVG."),
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
            if strategy == "local" or setting(name).kind != TORCH
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
        ours = [row for row in rows if setting(row["setting"]).ours]
        failures = []
        for row in ours:
            share = setting(row["setting"]).share
            if row["refused"] is None:
                failures += _judge(row, share)
            elif share is None or share >= row["least_share"]:
                failures.append(failure(row, f"a share of {row['least_share']:.2f} fits"))
        return failures + _not_monotone(ours)

    def files(self, rows: Sequence[Row], options: Mapping[str, Any]) -> Mapping[Path, str]:
        return {} if options["picture"] is None else {options["picture"]: picture_of(rows)}


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
    least_share, counted = _ALWAYS_FITS, [most(of, "activations", 1) for of in (plain, blocks)]
    if counted[0] and counted[1]:
        least_share = (1 + PREDICTION) * counted[1] / counted[0]
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
        "native_ratio": most(done, "native_ratio", 1),
        "added_share": added,
        "least_share": least_share,
        "refused": done.results[0].get("refused"),
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
        failures += above(row, "native_ratio", STEP_RATIO)
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
        how = setting(row["setting"])
        if how.share is not None and row["predicted_mb"] is not None:
            series.setdefault((row["strategy"], row["workers"], row["model"], how.kind), []).append(row)
    failures = []
    for group in series.values():
        ordered = sorted(group, key=lambda row: setting(row["setting"]).share or 0)
        for small, large in itertools.pairwise(ordered):
            for name in ("activation_mb", "predicted_mb"):
                if large[name] is not None:
                    failures += above(small, name, large[name])
    return failures
