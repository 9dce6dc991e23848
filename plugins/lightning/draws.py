"""Have what a dataset draws at random depend on (seed, epoch, sample), in a DataLoader of the user's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import TensorDataset

from ...adapters.torch.draws import seed_draws, streams_kept


class SeedingIndices(list[int]):
    """The samples of a batch: while somebody goes through them, the random streams are seeded for each.

    DataLoader loads `[dataset[index] for index in indices]`, in whatever process it does.
    """

    def __init__(self, indices: Sequence[int], seed: int, epoch: int) -> None:
        super().__init__(indices)
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        with streams_kept():
            for index in super().__iter__():
                seed_draws(self._seed, self._epoch, index)
                yield index

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self[:], self._seed, self._epoch)


def draws_nothing(dataset: Any) -> bool:
    """Whether it is known to, so that the time for seeds is saved."""
    return type(dataset) is TensorDataset
