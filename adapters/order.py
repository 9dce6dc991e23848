"""Which samples each step trains on, and which of them are each worker's share.

The order is a function of (seed, epoch) and nothing else. For a dataset of L samples, epoch e visits

    numpy.random.RandomState(numpy.random.MT19937(numpy.random.SeedSequence([seed, e]))).permutation(L)

and step s takes the s-th slice of `global_batch_size` of them; the last batch of an epoch may be shorter. `RandomState`
is used because its stream is frozen (NEP 19): a run that resumes with a newer NumPy continues with the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .errors import DataError, OptionError
from .progress import Progress
from .worker import Worker

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one micro-batch of one worker.

    indices: positions in the dataset, never empty.
    weight: the number of samples, or 0 for a placeholder of an empty share.
    """

    indices: tuple[int, ...]
    weight: int


def check_batch_size(argument: str, size: int, world_size: int) -> None:
    """Check the size of a global batch, given as the argument of this name.

    Raises:
        OptionError: it is not positive, or smaller than the number of workers.
    """
    if size < 1:
        raise OptionError(f"{argument}={size} must be at least 1")
    if size < world_size:
        raise OptionError(
            f"{argument}={size} is smaller than the {world_size} workers: some would never get a sample. Raise it, or "
            "start fewer workers."
        )


@dataclass(frozen=True)
class GlobalOrder:
    """The order of a dataset of `length` samples in global batches, the same for every world size.

    Raises:
        DataError: the dataset is empty.
        OptionError: the global batch size is not positive, or the seed is not from 0 to 2**63 - 1.
    """

    length: int
    global_batch_size: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self) -> None:
        if self.length < 1:
            raise DataError("the dataset has length 0: there is nothing to train on")
        check_batch_size("global_batch_size", self.global_batch_size, 1)
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed={self.seed} must be from 0 to 2**63 - 1")

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch takes, the short last batch included."""
        return -(-self.length // self.global_batch_size)

    def size(self, step: int) -> int:
        """Return the number of samples of a step; only the last of an epoch may have fewer."""
        return min(self.global_batch_size, self.length - step * self.global_batch_size)

    def global_batch(self, epoch: int, step: int) -> Indices:
        """Return the samples of one step, in order."""
        start = step * self.global_batch_size
        return _epoch_order(self.length, self.seed if self.shuffle else None, epoch)[
            start : start + self.global_batch_size
        ]

    def positions(self, start: Progress, epochs: int) -> Iterator[tuple[int, int]]:
        """Yield (epoch, step) from `start` to the end of epoch `epochs` - 1; it raises as `remaining` does."""
        self.remaining(start, epochs)
        first = start.step
        for epoch in range(start.epoch, epochs):
            for step in range(first, self.steps_per_epoch):
                yield epoch, step
            first = 0

    def remaining(self, start: Progress, epochs: int) -> int:
        """Return the number of steps from `start` to the end of epoch `epochs` - 1.

        Raises:
            DataError: no epoch has the step of `start`, or it was counted with another global batch size.
        """
        if start.step and start.global_batch_size not in (0, self.global_batch_size):
            raise DataError(
                f"{start} was reached with global_batch_size={start.global_batch_size}, and with "
                f"{self.global_batch_size} some samples of this epoch would come twice or never: finish the epoch with "
                f"{start.global_batch_size}, or begin the next one with start=Progress({start.epoch + 1}, 0)"
            )
        if start.step > self.steps_per_epoch:
            raise DataError(
                f"cannot start at step {start.step}: an epoch has {self.steps_per_epoch} steps "
                f"({self.length} samples in global batches of {self.global_batch_size}). "
                "Resume with the dataset and global_batch_size of the saved progress."
            )
        return max(0, (epochs - start.epoch) * self.steps_per_epoch - start.step)

    def after(self, epoch: int, step: int, loop: int = 0) -> Progress:
        """Return the progress after step (epoch, step), in the call of `batches` numbered `loop`."""
        last = step + 1 == self.steps_per_epoch
        size = self.global_batch_size
        return (
            Progress(epoch + 1, 0, loop=loop) if last else Progress(epoch, step + 1, loop=loop, global_batch_size=size)
        )

    def micro_batches(self, epoch: int, step: int, worker: Worker, accumulate: int) -> tuple[MicroBatch, ...]:
        """Return the `accumulate` micro-batches of one worker in one step.

        Workers take contiguous shares whose sizes differ by at most one, and split them into micro-batches alike. Every
        worker has the same number of micro-batches, so that collectives match. An empty one repeats the first sample of
        the global batch with weight 0 (twice, because BatchNorm refuses to train on a single value).
        """
        batch = self.global_batch(epoch, step)
        share = batch[slice_of(len(batch), worker.rank, worker.world_size)]
        micro_batches = []
        for number in range(accumulate):
            indices = tuple(int(i) for i in share[slice_of(len(share), number, accumulate)])
            placeholder = (int(batch[0]),) * 2
            micro_batches.append(MicroBatch(indices or placeholder, len(indices)))
        return tuple(micro_batches)


def slice_of(length: int, number: int, count: int) -> slice:
    """Return the `number`-th of `count` contiguous slices; the first `length % count` are longer by one."""
    size, extra = divmod(length, count)
    start = number * size + min(number, extra)
    return slice(start, start + size + (number < extra))


@lru_cache(maxsize=4)
def _epoch_order(length: int, seed: int | None, epoch: int) -> Indices:
    if seed is None:
        order = np.arange(length)
    else:
        stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
        order = stream.permutation(length)
    order.setflags(write=False)
    return order.astype(np.int64, copy=False)
