"""Where a training stands in its data: the batches that remain, and where each call of `batches` begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, SupportsFloat

from .progress import Progress
from .seam import Seam


@dataclass(frozen=True)
class Batch:
    """One step's data on one worker.

    micro: this worker's micro-batches, each collated by itself.
    weights: how much each of them counts (samples unless told otherwise); 0 for one that stands in for an empty share.
    global_weight: the sum of the weights over all micro-batches of all workers; reading it may wait for a reduction.
    progress: the position after this step.
    random_seed: what the step seeds the framework's random streams with, so that a resumed run draws what an
        uninterrupted one would; different on every worker. `None` leaves the streams alone.
    """

    micro: tuple[Any, ...]
    weights: tuple[float, ...]
    global_weight: SupportsFloat
    progress: Progress
    random_seed: int | None = None


class Batches(Iterator[Batch]):
    """This worker's part of the global batches of one call of `Training.batches`; `len` counts those that remain."""

    def __init__(self, steps: Iterator[Batch], remaining: int, seam: Seam) -> None:
        self._steps = steps
        self._remaining = remaining
        self._seam = seam

    def __len__(self) -> int:
        return self._remaining

    def __next__(self) -> Batch:
        with self._seam.phase("data"):
            batch = next(self._steps)
        self._remaining -= 1
        return batch


class Position:
    """Where one training stands, and where its next call of `batches` begins.

    A program that is started again makes the same calls. Those that were completed when its checkpoint was saved have
    nothing left, the one that it was saved in goes on behind the checkpoint, and later ones begin at their first step.

    progress: after the last step, or where `load` found the training.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self._loaded = Progress()
        self._next = 0

    def take_up(self, progress: Progress) -> None:
        """Go on where a checkpoint was saved. In the middle of a program, the next call does."""
        self.progress = self._loaded = progress
        if self._next:
            self._next = progress.loop

    def begin(self, start: Progress | None, epochs: int) -> Progress:
        """Return where a call of `batches` over so many epochs begins; `begun` says that it could."""
        if start is None:
            loop = self._next
            if loop < self._loaded.loop:
                start = Progress(epochs, loop=loop)
            else:
                start = self._loaded if loop == self._loaded.loop else Progress(loop=loop)
        return start

    def begun(self, start: Progress) -> None:
        """Note that a call has begun there: the next one is another."""
        self._next = start.loop + 1
