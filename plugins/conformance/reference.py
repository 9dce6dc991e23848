"""The curve that every engine must follow: plain PyTorch in one process.

It shares the model, the data and the loss with the engines' program, and nothing else: neither sampler nor step. The
order of samples is written out again from its published definition (`farandole.adapters.order`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from . import program
from .variants import GLOBAL_BATCH, SEED, STEPS, VARIANTS


@dataclass(frozen=True)
class Curve:
    """The losses of all steps, and the weights after the last one by name."""

    losses: tuple[float, ...]
    weights: dict[str, np.ndarray]

    def loss_diff(self, other: Curve, start: int = 0) -> float:
        """Return the largest |other - self| / max(1, |self|) of any step; `other` begins at step `start`."""
        own = np.array(self.losses[start:])
        if len(own) != len(other.losses):
            return float("inf")
        return _largest(np.abs(np.array(other.losses) - own) / np.maximum(1.0, np.abs(own)))

    def weight_diff(self, other: Curve) -> float:
        """Return the largest distance of a weight tensor by norm, relative to its own."""
        if self.weights.keys() != other.weights.keys():
            return float("inf")
        distances = [
            np.linalg.norm(other.weights[name] - weight) / (np.linalg.norm(weight) or 1.0)
            for name, weight in self.weights.items()
        ]
        return _largest(np.array(distances))


@cache
def reference_curve(variant_name: str, dtype_name: str, parts: int = 1) -> Curve:
    """Train a variant in one process; with `parts` > 1 each batch is cut up: the noise floor of rounding."""
    variant, dtype = VARIANTS[variant_name], getattr(torch, dtype_name)
    model, optimizer, scheduler = program.build(variant, dtype)
    data = program.dataset(variant, dtype)
    loss_fn = program.mean_token_loss if variant.tokens else program.mean_loss
    losses: list[float] = []
    epoch = 0
    while len(losses) < STEPS:
        order = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([SEED, epoch]))).permutation(
            variant.length
        )
        for first in range(0, variant.length, GLOBAL_BATCH):
            rows = torch.from_numpy(order[first : first + GLOBAL_BATCH])
            counts = data[2][rows].double() if variant.tokens else torch.ones(len(rows), dtype=torch.float64)
            optimizer.zero_grad()
            loss_of_batch = 0.0
            for piece, weights in zip(rows.tensor_split(parts), counts.tensor_split(parts), strict=True):
                if len(piece) > 0:
                    share = (weights.sum() / counts.sum()).item() if parts > 1 else 1.0
                    loss = loss_fn(model, (data[0][piece], data[1][piece], data[2][piece])) * share
                    loss.backward()  # type: ignore[no-untyped-call]
                    loss_of_batch += loss.item()
            if variant.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), variant.clip_norm)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
            losses.append(loss_of_batch)
        epoch += 1
    assert len(losses) == STEPS, "epochs of every variant divide the number of steps"
    return Curve(tuple(losses), {name: weight.detach().numpy() for name, weight in model.state_dict().items()})


def _largest(differences: np.ndarray) -> float:
    largest = float(differences.max())
    return largest if np.isfinite(largest) else float("inf")
