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
        self._models: list[weakref.ref[torch.nn.Module]] = []

    def add(self, model: torch.nn.Module) -> None:
        """Note that a model is trained."""
        self._forget()
        if all(known() is not model for known in self._models):
            self._models.append(weakref.ref(model, self._forget))

    def _forget(self, _freed: object = None) -> None:
        """Forget models that were freed."""
        self._models = [known for known in self._models if known() is not None]

    @contextlib.contextmanager
    def frozen_beside(self, model: torch.nn.Module) -> Iterator[None]:
        """Freeze the parameters of all other models, except those that this model has too."""
        if len(self._models) == 1:
            yield
            return
        # Searched in each step, because models may change.
        frozen = [parameter for parameter in self._others(model) if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _others(self, model: torch.nn.Module) -> list[torch.nn.Parameter]:
        own = {id(parameter) for parameter in model.parameters()}
        others = [other for known in self._models if (other := known()) is not None and other is not model]
        return [parameter for other in others for parameter in other.parameters() if id(parameter) not in own]
