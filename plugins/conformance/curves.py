"""Train the variants on a strategy, as a user would, and write down the curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...adapters import Progress, Strategy, Training
from . import program
from .reference import Curve
from .variants import GLOBAL_BATCH, SEED, STEPS, VARIANTS, Variant


def prepare(strategy: Strategy, variant: Variant, dtype_name: str) -> Training:
    """Hand a variant's model and optimizer to the strategy."""
    with strategy.scope():
        model, optimizer, scheduler = program.build(variant, getattr(torch, dtype_name))
        return strategy.prepare(
            model,
            optimizer,
            program.mean_token_loss if variant.tokens else program.mean_loss,
            scheduler=scheduler,
            accumulate=variant.accumulate,
            clip_norm=variant.clip_norm,
        )


def train(
    training: Training, variant: Variant, dtype_name: str, start: Progress = Progress(), steps: int = STEPS
) -> tuple[Curve, Progress]:
    """Train `steps` steps from `start`; return their losses, the weights after them, and where that is."""
    data = program.dataset(variant, getattr(torch, dtype_name))
    losses = []
    progress = start
    batches = training.batches(
        data,
        GLOBAL_BATCH,
        epochs=STEPS,
        seed=SEED,
        start=start,
        weight=program.count_tokens if variant.tokens else None,
    )
    for batch, _ in zip(batches, range(steps), strict=False):
        losses.append(training.step(batch))
        progress = batch.progress
    weights = {name: weight.numpy() for name, weight in training.weights()}
    return Curve(tuple(map(float, losses)), weights), progress


def run_variant(strategy: Strategy, variant_name: str, dtype_name: str) -> Curve:
    """Train a variant from the start."""
    variant = VARIANTS[variant_name]
    return train(prepare(strategy, variant, dtype_name), variant, dtype_name)[0]


def write_curve(path: Path, curve: Curve) -> None:
    """Write a curve where `read_curve` finds it whole or not at all."""
    partial = path.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {f"weight:{name}": weight for name, weight in curve.weights.items()}
    np.savez(partial, losses=np.array(curve.losses), **arrays)
    partial.replace(path)


def read_curve(path: Path) -> Curve:
    """Read what `write_curve` wrote."""
    with np.load(path) as file:
        weights = {name.removeprefix("weight:"): file[name] for name in file.files if name != "losses"}
        return Curve(tuple(map(float, file["losses"])), weights)
