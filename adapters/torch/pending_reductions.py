"""Reductions whose result may not be needed, but which must be waited for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .strategy import Finish, TorchStrategy


class EarlierReduction:
    """The last reduction of one kind; it is waited for before the next one starts, and before the job is left.

    On the CPU it has long finished by then. On CUDA the stream waits, not the host: nothing is read here.
    """

    def __init__(self) -> None:
        self._finish: Finish | None = None

    def replace(self, finish: Finish) -> None:
        """Store the next one; call `settle` first."""
        self._finish = finish

    def settle(self) -> None:
        """Wait for it, if necessary."""
        if self._finish is not None:
            self._finish()
            self._finish = None


class GradientCounts:
    """Counts on how many workers each parameter has a gradient in this step.

    A parameter without a gradient on any worker must not be updated, although an engine would use zeros. Only a worker
    that lacks a gradient needs the answer: the others wait for it in the next step.
    """

    def __init__(self, strategy: TorchStrategy, name: str) -> None:
        self._strategy = strategy
        self._name = f"{name}.workers_with_gradient"
        self._counts = torch.empty(0)
        self._earlier = EarlierReduction()

    def start(self, present: Sequence[bool]) -> None:
        """Start to count; all workers call it, with whether they have a gradient for each parameter."""
        self._earlier.settle()
        # float32 like most gradients, so that Horovod fuses them. `ones` copies nothing to a GPU.
        self._counts = torch.ones(len(present), device=self._strategy.device)
        if not all(present):
            self._counts.copy_(torch.tensor(present))
        self._earlier.replace(self._strategy.start_all_reduce(self._counts, "sum", self._name))

    def read(self) -> list[float]:
        """Wait for the counts, and return one for each parameter."""
        self._earlier.settle()
        counts: list[float] = self._counts.tolist()
        return counts

    def settle(self) -> None:
        """Wait for counts that this worker did not need."""
        self._earlier.settle()
