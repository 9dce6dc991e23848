"""The curve that every engine of PyTorch must follow: plain PyTorch in one process.

It shares the model, the data and the loss with the engines' program, but neither sampler nor step.
"""

from __future__ import annotations

import math
from functools import cache

import torch

from ..curves import Curve
from ..order import rows_of_steps
from ..variants import VARIANTS, Variant
from . import program


@cache
def reference_curve(variant_name: str, dtype: str, pieces: int = 1) -> Curve:
    """Train a variant in one process; `pieces` > 1 splits each batch: the noise floor of rounding."""
    variant = VARIANTS[variant_name]
    model, optimizer, scheduler = program.build(variant, dtype)
    data = program.dataset(variant, dtype)
    loss_fn = program.mean_token_loss if variant.tokens else program.mean_loss
    losses: list[float] = []
    norms: list[float] = []
    for rows in map(torch.from_numpy, rows_of_steps(variant.length)):
        counts = data[2][rows].double() if variant.tokens else torch.ones(len(rows), dtype=torch.float64)
        optimizer.zero_grad()
        loss_of_batch = 0.0
        for piece, weights in zip(rows.tensor_split(pieces), counts.tensor_split(pieces), strict=True):
            if len(piece) > 0:
                fraction = (weights.sum() / counts.sum()).item() if pieces > 1 else 1.0
                loss = loss_fn(model, (data[0][piece], data[1][piece], data[2][piece])) * fraction
                loss.backward()  # type: ignore[no-untyped-call]
                loss_of_batch += loss.item()
        if variant.measures_norm:
            norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), variant.clip_norm or math.inf).item())
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss_of_batch)
    trained = {name: weight.detach().numpy() for name, weight in model.state_dict().items()}
    return Curve(tuple(losses), trained, tuple(norms))


def reference_loss(variant: Variant, data: program.Sample) -> float:
    """Return the mean loss of an untrained model over `data`."""
    with torch.no_grad():
        return program.mean_loss(program.build(variant, "float32")[0], data).item()
