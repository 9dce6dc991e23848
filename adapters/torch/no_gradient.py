"""Zeros in the place of gradients that a worker does not have."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch


class Sparse:
    """The parameters of a module whose gradients are sparse, as far as its embeddings show."""

    def __init__(self, module: torch.nn.Module) -> None:
        embeddings = [m for m in module.modules() if isinstance(m, (torch.nn.Embedding, torch.nn.EmbeddingBag))]
        self._ids = {id(embedding.weight) for embedding in embeddings if embedding.sparse}

    def __contains__(self, parameter: torch.Tensor) -> bool:
        return id(parameter) in self._ids

    @staticmethod
    def zeros(parameter: torch.Tensor) -> torch.Tensor:
        """Return a sparse gradient without elements."""
        nowhere = torch.empty((1, 0), dtype=torch.long, device=parameter.device)
        return torch.sparse_coo_tensor(nowhere, parameter.new_empty((0, *parameter.shape[1:])), parameter.shape)


class NoGradient:
    """Gives zeros to parameters for which a function of the graph has no gradient, before an engine's hook reads it.

    Autograd runs an engine's hooks of such parameters too: a `torch.autograd.Function` may return `None`, perhaps on
    some workers only.

    given: parameters that got a gradient. The engine clears it.
    zeros: parameters whose `grad` is zeros that were given here.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], sparse: Sparse | None = None) -> None:
        self.given: set[torch.Tensor] = set()
        self.zeros: set[torch.Tensor] = set()
        # With the sets, and not this object: a parameter would keep alive what holds it.
        self._hooks: list[Any] = [
            parameter.register_hook(  # type: ignore[no-untyped-call]
                partial(_note, self.given, self.zeros, parameter, sparse is not None and parameter in sparse)
            )
            for parameter in parameters
        ]

    def release(self) -> None:
        """Remove the hooks."""
        while self._hooks:
            self._hooks.pop().remove()


def _note(
    given: set[torch.Tensor],
    zeros: set[torch.Tensor],
    parameter: torch.Tensor,
    is_sparse: bool,
    gradient: torch.Tensor | None,
) -> None:
    if gradient is not None:
        given.add(parameter)
        zeros.discard(parameter)
    elif parameter.grad is None:
        parameter.grad = Sparse.zeros(parameter) if is_sparse else torch.zeros_like(parameter)
        zeros.add(parameter)
