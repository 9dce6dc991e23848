"""The variants of one small training program, to compare curves. Framework-free: names and numbers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

STEPS = 100
GLOBAL_BATCH = 32
SEED = 11
DTYPES = ("float32", "float64")

LOSS_BOUND = {"float32": 1e-5, "float64": 1e-12}
"""Largest |loss - reference| / max(1, |reference|) of any step, from the contract's first point."""

WEIGHT_BOUND = {"float32": 1e-5, "float64": 1e-12}
"""Largest relative distance, by norm, of any weight tensor after the last step."""


@dataclass(frozen=True)
class Variant:
    """One way to train.

    length: samples in the dataset; 99 leaves three for the last batch, so that shares are uneven, and 97 leaves one, so
        that all workers but the first have empty shares.
    grad_norm: whether to compare the norms of the gradients too; with clipping they always are.
    unused: whether the model has a parameter that the loss does not use.
    tokens: whether samples are weighted by their numbers of tokens, which differ.
    """

    name: str
    optimizer: Literal["sgd", "adamw"] = "sgd"
    length: int = 160
    accumulate: int = 1
    clip_norm: float | None = None
    grad_norm: bool = False
    schedule: bool = False
    unused: bool = False
    tokens: bool = False

    @property
    def measures_norm(self) -> bool:
        """Whether its curve has the norms of the gradients."""
        return self.grad_norm or self.clip_norm is not None


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("sgd_momentum"),
        Variant("adamw", optimizer="adamw"),
        Variant("accumulate_4", length=99, accumulate=4, grad_norm=True),
        Variant("clip", clip_norm=0.2),
        Variant("schedule", optimizer="adamw", length=99, schedule=True),
        Variant("unused_parameter", optimizer="adamw", unused=True),
        Variant("empty_share", optimizer="adamw", length=97, accumulate=2),
        Variant("tokens", optimizer="adamw", length=97, tokens=True, clip_norm=0.5),
    )
}
