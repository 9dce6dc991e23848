"""Where a training stands in its data: the batches that remain, and where each call of `batches` begins."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, SupportsFloat

from .progress import Progress
from .seam import Seam


@dataclass(frozen=True)
class Batch:
    """One step's data on one worker.

    micro: this worker's micro-batches, each collated by itself.
    weights: the weight of each micro-batch (by default its samples); 0 for a placeholder of an empty share.
    samples: this worker's, if the weights count something else.
    global_weight: the sum of the weights over all micro-batches of all workers; reading it may wait for a reduction.
    progress: the position after this step.
    random_seed: seed of the framework's random streams in this step, so that a resumed run draws the same numbers;
        different on every worker. `None` leaves the streams alone.
    largest: the samples in the largest micro-batch of any worker; `None` where that is not known.
    """

    micro: tuple[Any, ...]
    weights: tuple[float, ...]
    global_weight: SupportsFloat
    progress: Progress
    random_seed: int | None = None
    largest: int | None = None
    samples: int | None = None


class Batches(Iterator[Batch]):
    """This worker's shares of the global batches of one call of `Training.batches`; `len` counts those that remain."""

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

    A program that is started again makes the same calls. Calls that were complete when the checkpoint was saved yield
    nothing, the call in which it was saved continues after the checkpoint, and later calls begin at their first step.

    progress: after the last step, or where `load` found the training.
    """

    def __init__(self) -> None:
        self.progress = Progress()
        self._loaded = Progress()
        self._next = 0

    def load(self, progress: Progress) -> None:
        """Continue from the position of a checkpoint; in the middle of a program, with the next call."""
        self.progress = self._loaded = progress
        if self._next:
            self._next = progress.loop

    def begin(self, start: Progress | None, epochs: int) -> Progress:
        """Return where a call of `batches` over `epochs` epochs begins; `begun` confirms it.

        A `start` before the position, for example of a second phase, begins a call of its own: what it saves is
        further. Otherwise it continues the call that it names.
        """
        loop = self._next
        if start is not None:
            return replace(start, loop=loop) if start < self.progress and start.loop < loop else start
        if loop < self._loaded.loop:
            return Progress(epochs, loop=loop)
        return self._loaded if loop == self._loaded.loop else Progress(loop=loop)

    def begun(self, start: Progress) -> None:
        """Note that this call has begun, so that the next call gets the next number."""
        self._next = start.loop + 1
