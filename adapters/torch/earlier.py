"""Reductions that nobody may need the result of, but that must not be left behind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .strategy import Finish, TorchStrategy


class EarlierReduction:
    """The last reduction of some kind; it is waited for before the next one is started, and before the job is left.

    By then it has long been done on the CPU. On CUDA the stream waits, not the host: nothing is read here.
    """

    def __init__(self) -> None:
        self._finish: Finish | None = None

    def replace(self, finish: Finish) -> None:
        """Take up the next one, once `settle` was called."""
        self._finish = finish

    def settle(self) -> None:
        """Wait for it, if nobody has."""
        if self._finish is not None:
            self._finish()
            self._finish = None


class GradientCounts:
    """Counts on how many workers each parameter has a gradient in this step.

    A parameter without one on any worker must be left alone, where an engine would take zeros for its gradient. Only a
    worker that lacks a gradient needs to know: the others leave the answer for the next step.
    """

    def __init__(self, strategy: TorchStrategy, name: str) -> None:
        self._strategy = strategy
        self._name = f"{name}.workers_with_gradient"
        self._counts = torch.empty(0)
        self._earlier = EarlierReduction()

    def start(self, present: Sequence[bool]) -> None:
        """Start to count; all workers call it, each with whether it has a gradient for each parameter."""
        self._earlier.settle()
        # float32, as most gradients, so that Horovod fuses it with them. `ones` copies nothing to a GPU.
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
        """Wait for counts that this worker did not need to know."""
        self._earlier.settle()
