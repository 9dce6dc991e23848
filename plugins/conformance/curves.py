"""Train the variants on a strategy, as a user would; compare, write and read their curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...adapters import Callback, Progress, Strategy, Training
from .framework import program_of
from .variants import GLOBAL_BATCH, SEED, STEPS, VARIANTS, Variant


@dataclass(frozen=True)
class Curve:
    """The losses of all steps, the weights after the last one by name, and the gradients' norms if measured."""

    losses: tuple[float, ...]
    weights: dict[str, np.ndarray]
    grad_norms: tuple[float, ...] = ()

    def loss_diff(self, other: Curve, start: int = 0) -> float:
        """Return the largest |other - self| / max(1, |self|) of any step; `other` begins at step `start`."""
        return _difference(self.losses[start:], other.losses)

    def grad_norm_diff(self, other: Curve) -> float:
        """Return the largest |other - self| / max(1, |self|) of the norms of any step's gradient; 0 without norms."""
        return _difference(self.grad_norms, other.grad_norms) if self.grad_norms or other.grad_norms else 0.0

    def weight_diff(self, other: Curve) -> float:
        """Return the largest distance of a weight tensor by norm, relative to its own."""
        if self.weights.keys() != other.weights.keys():
            return float("inf")
        distances = [
            np.linalg.norm(other.weights[name] - weight) / (np.linalg.norm(weight) or 1.0)
            for name, weight in self.weights.items()
        ]
        return _largest(np.array(distances))


def prepare(strategy: Strategy, variant: Variant, dtype: str, callbacks: Sequence[Callback] = ()) -> Training:
    """Prepare a variant's model and optimizer with the strategy."""
    program = program_of(strategy)
    with strategy.scope():
        model, optimizer, scheduler = program.build(variant, dtype)
        return strategy.prepare(
            model,
            optimizer,
            program.mean_token_loss if variant.tokens else program.mean_loss,
            scheduler=scheduler,
            accumulate=variant.accumulate,
            clip_norm=variant.clip_norm,
            grad_norm=variant.grad_norm,
            callbacks=callbacks,
        )


def train(
    strategy: Strategy,
    training: Training,
    variant: Variant,
    dtype: str,
    start: Progress = Progress(),
    steps: int = STEPS,
) -> tuple[Curve, Progress]:
    """Train `steps` steps from `start`; return their losses, the final weights, and the position."""
    program = program_of(strategy)
    losses, norms = [], []
    progress = start
    batches = training.batches(
        program.dataset(variant, dtype),
        GLOBAL_BATCH,
        epochs=STEPS,
        seed=SEED,
        start=start,
        weight=program.count_tokens if variant.tokens else None,
    )
    for batch, _ in zip(batches, range(steps), strict=False):
        losses.append(training.step(batch))
        if variant.measures_norm:
            norms.append(training.grad_norm)
        progress = batch.progress
    weights = {name: np.asarray(weight) for name, weight in training.weights()}
    return Curve(tuple(map(float, losses)), weights, tuple(map(float, norms))), progress


def run_variant(strategy: Strategy, variant_name: str, dtype: str) -> Curve:
    """Train a variant from the start."""
    variant = VARIANTS[variant_name]
    return train(strategy, prepare(strategy, variant, dtype), variant, dtype)[0]


def write_curve(path: Path, curve: Curve) -> None:
    """Write a curve atomically."""
    partial = path.with_suffix(".partial.npz")
    arrays: dict[str, Any] = {f"weight:{name}": weight for name, weight in curve.weights.items()}
    np.savez(partial, losses=np.array(curve.losses), grad_norms=np.array(curve.grad_norms), **arrays)
    partial.replace(path)


def read_curve(path: Path) -> Curve:
    """Read what `write_curve` wrote."""
    with np.load(path) as file:
        weights = {name.removeprefix("weight:"): file[name] for name in file.files if name.startswith("weight:")}
        return Curve(tuple(map(float, file["losses"])), weights, tuple(map(float, file["grad_norms"])))


def _difference(expected: Sequence[float], found: Sequence[float]) -> float:
    own = np.array(expected)
    if len(own) != len(found):
        return float("inf")
    return _largest(np.abs(np.array(found) - own) / np.maximum(1.0, np.abs(own)))


def _largest(differences: np.ndarray) -> float:
    largest = float(differences.max())
    return largest if np.isfinite(largest) else float("inf")
