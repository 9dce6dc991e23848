"""Gradient checkpointing: layers keep their inputs only, and are computed again in the backward pass.

    training = strategy.prepare(model, optimizer, loss_fn, callbacks=[GradientCheckpointing(budget=0.5)])

`plan(model, batch, loss_fn, budget=0.5)` returns the same choice without training; `print` shows it as a table.
"""

from .budget import Budget
from .callback import GradientCheckpointing, plan
from .choice import LayerCost, Plan
from .selection import Candidate, Layers

__all__ = ["Budget", "Candidate", "GradientCheckpointing", "LayerCost", "Layers", "Plan", "plan"]
