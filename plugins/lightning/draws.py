"""Make the random numbers of a user's DataLoader depend on (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import TensorDataset

from ...adapters.torch.draws import seed_draws, streams_kept


class SeedingIndices(list[int]):
    """The samples of a batch: iterating over them seeds the random streams for each.

    DataLoader loads `[dataset[index] for index in indices]`, in its own or a loader process.
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
    """Whether the dataset is known to draw nothing, which saves the time for seeds."""
    return type(dataset) is TensorDataset
