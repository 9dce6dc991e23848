"""Time a frontend's training and a loop in turns: an epoch of one, then as many steps of the other, in one process.

A frontend's set-up covers all of its epochs, so single steps cannot be timed. Each turn is some tens of steps long, and
the turns are paired, so that drift of the machine cancels out.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable

from ..progress import tell
from .shapes import Shape

_EPOCH = 3200  # samples per worker: 50 steps of the small and the medium model, 12 of the large one
_WARM_UP = 2  # epochs: frontends and engines compile their steps in the first
_LEAST = 12  # pairs of epochs


class Turns:
    """Epochs of `steps` steps; enough of them to time `pairs` steps on each side."""

    def __init__(self, shape: Shape, pairs: int) -> None:
        self.steps = _EPOCH // shape.batch
        self.epochs = _WARM_UP + max(_LEAST, math.ceil(pairs / self.steps))
        self._frontend: list[float] = []
        self._loop: list[float] = []
        self._started = 0.0

    def begin(self) -> None:
        """Note that an epoch of the frontend begins."""
        epoch = len(self._loop)
        tell(f"epoch {epoch} of {self.epochs}")
        if epoch == _WARM_UP:
            # The garbage collector takes most of a second for the leftovers of compiling, on either side by chance.
            gc.collect()
            gc.freeze()
        self._started = time.perf_counter()

    def end(self, loop: Callable[[], None]) -> None:
        """Note that the frontend's epoch has ended, and run as many steps of the loop with `loop()`."""
        ended = time.perf_counter()
        loop()
        self._frontend.append((ended - self._started) / self.steps)
        self._loop.append((time.perf_counter() - ended) / self.steps)

    def seconds(self) -> dict[str, list[float]]:
        """Return the seconds per step of each turn after the warm-up: the frontend's are "ours"."""
        return {"ours": self._frontend[_WARM_UP:], "raw": self._loop[_WARM_UP:]}
