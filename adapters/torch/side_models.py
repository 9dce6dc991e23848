"""Keep the gradients of a step to the model that is trained in it, where its loss runs through another one.

Two trainings of one strategy, as of a generator and a discriminator: the engine of the other model would take gradients
that come in this model's step for its own, or reduce them.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch


class SideModels:
    """The models that a strategy's trainings have."""

    def __init__(self) -> None:
        self._models: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def add(self, model: torch.nn.Module) -> None:
        """Note that a model is trained."""
        self._models.add(model)

    @contextlib.contextmanager
    def frozen_beside(self, model: torch.nn.Module) -> Iterator[None]:
        """Freeze, meanwhile, the parameters of all other models that are no parameters of this one too."""
        if len(self._models) == 1:
            yield
            return
        own = {id(parameter) for parameter in model.parameters()}
        others = [parameter for other in self._models if other is not model for parameter in other.parameters()]
        frozen = [parameter for parameter in others if parameter.requires_grad and id(parameter) not in own]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
