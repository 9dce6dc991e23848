"""Save half of a curve, and train the other half from the checkpoints of all strategies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...adapters import Strategy, create_strategy, latest
from ...plugins.conformance.curves import prepare, train
from ...plugins.conformance.variants import STEPS, VARIANTS
from ...plugins.conformance.worker import SAVED_DTYPE, SAVED_STEPS, SAVED_VARIANT
from ..progress import tell

_VARIANT = VARIANTS[SAVED_VARIANT]


def save(strategy_name: str, folder: Path) -> None:
    """Train the first steps, and leave a checkpoint for other jobs."""
    with create_strategy(strategy_name) as strategy:
        training = prepare(strategy, _VARIANT, SAVED_DTYPE)
        _, progress = train(strategy, training, _VARIANT, SAVED_DTYPE, steps=SAVED_STEPS)
        training.save(_place(folder, strategy_name, strategy.worker.world_size), progress)


def resume_all(strategy_name: str, saved: Sequence[tuple[str, int]], folder: Path) -> list[dict[str, Any] | None]:
    """Return losses and weights after resuming each of the checkpoints, `None` if it is not whole."""
    curves: list[dict[str, Any] | None] = []
    with create_strategy(strategy_name) as strategy:
        for number, (saved_with, saved_workers) in enumerate(saved):
            tell(f"checkpoint {number + 1} of {len(saved)}")
            path = _place(folder, saved_with, saved_workers)
            # Its save may have failed, but that is not this job's failure.
            there = strategy.broadcast(latest(path) is not None)
            curves.append(_resume(strategy, path) if there else None)
    return curves


def _resume(strategy: Strategy, path: Path) -> dict[str, Any]:
    training = prepare(strategy, _VARIANT, SAVED_DTYPE)
    start = training.load(path)
    curve, _ = train(strategy, training, _VARIANT, SAVED_DTYPE, start=start, steps=STEPS - SAVED_STEPS)
    return {"losses": curve.losses, "weights": {name: weight.tolist() for name, weight in curve.weights.items()}}


def _place(folder: Path, saved_with: str, saved_workers: int) -> Path:
    return folder / f"{saved_with}-{saved_workers}"
