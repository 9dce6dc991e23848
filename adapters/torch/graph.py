"""Find the parameters on which a loss depends."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def leaves_of(loss: torch.Tensor) -> set[Any]:
    """Return the leaves of a loss's autograd graph: the tensors to which its backward gives a gradient.

    Recomputations of a reentrant activation checkpoint are not in the graph yet, and so not found.
    """
    return leaves_below([loss.grad_fn])


def leaves_below(nodes: Iterable[Any]) -> set[Any]:
    """Return the leaves below `nodes` of an autograd graph, as in `leaves_of`."""
    leaves: set[Any] = set()
    seen: set[Any] = set()
    ahead: list[Any] = list(nodes)
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(variable)
        ahead.extend(following for following, _ in node.next_functions)
    return leaves
