"""Choose the layers to checkpoint without training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ....adapters.errors import OptionError
from ....adapters.torch.placeholder import without_side_effects
from ..applied import Options
from ..choice import Plan
from .apply import checkpointed_layers
from .budgeted import BudgetedCheckpointing


def plan(
    model: torch.nn.Module, batch: Any, loss_fn: Callable[[Any, Any], torch.Tensor] | None, options: Options
) -> Plan:
    """Run a forward and a backward pass in this process, and choose; see `gradient_checkpointing.plan`."""
    if loss_fn is None:
        raise OptionError("plan needs loss_fn for a PyTorch model: a function of the model and a batch")
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    applied = BudgetedCheckpointing(model, checkpointed_layers(model, options, device), options)
    try:
        for parameter, _ in gradients:
            parameter.grad = None
        with without_side_effects(model), torch.enable_grad():
            applied.begin_profile()
            loss_fn(model, batch).backward()  # type: ignore[no-untyped-call]
        measured = applied.end_profile()
        if measured is None:
            raise OptionError("loss_fn runs none of the layers that could be checkpointed")
        applied.choose(measured)
        assert applied.plan is not None
        return applied.plan
    finally:
        applied.unapply()
        for parameter, gradient in gradients:
            parameter.grad = gradient
