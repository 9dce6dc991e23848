"""Give gradients only to the model that a step trains, if the loss runs through another one.

For two trainings of one strategy, for example a generator and a discriminator: in a step of one, the other's engine
would keep or reduce its gradients.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator

import torch


class SideModels:
    """The models of a strategy's trainings."""

    def __init__(self) -> None:
        self._models: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()

    def add(self, model: torch.nn.Module) -> None:
        """Note that a model is trained."""
        self._models.add(model)

    @contextlib.contextmanager
    def frozen_beside(self, model: torch.nn.Module) -> Iterator[None]:
        """Freeze the parameters of all other models, except those that this model has too."""
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
