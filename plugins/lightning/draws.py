"""Make the random numbers of a user's DataLoader depend on (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from ...adapters.torch.draws import seed_draws, streams_kept


class SeededIndices(list[int]):
    """The samples of a batch, with what seeds their random numbers.

    seed: of the order.
    epoch: in which they are loaded.
    """

    def __init__(self, indices: Sequence[int], seed: int, epoch: int) -> None:
        super().__init__(indices)
        self.seed = seed
        self.epoch = epoch

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (list(self), self.seed, self.epoch)


class _SeededDataset(Dataset[Any]):
    """Seeds the random streams before each sample that is loaded by `SeededIndices`, and restores them after."""

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_dataset"] = dataset

    def __getitems__(self, indices: Sequence[int]) -> Any:
        dataset = self._dataset
        many = getattr(dataset, "__getitems__", None)
        if not isinstance(indices, SeededIndices):
            return [dataset[index] for index in indices] if many is None else many(indices)
        samples = []
        with streams_kept():
            for index in indices:
                seed_draws(indices.seed, indices.epoch, index)
                found = [dataset[index]] if many is None else many([index])
                if not isinstance(found, list):  # the dataset collates, and does not separate samples
                    seed_draws(indices.seed, indices.epoch, index)
                    assert many is not None
                    return many(list(indices))
                samples += found
        return samples

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, SeededIndices):
            return self._dataset[index]
        with streams_kept():  # a DataLoader without batches
            (sample,) = index
            seed_draws(index.seed, index.epoch, sample)
            return self._dataset[sample]

    def __len__(self) -> int:
        return len(self._dataset)

    # What else a loader process reads or sets is the user's dataset's: `get_worker_info().dataset` is this one.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataset":
            raise AttributeError(name)
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._dataset, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._dataset,)


def seed_dataset(loader: DataLoader[Any]) -> None:
    """Let a DataLoader seed the random streams for each sample of `SeededIndices`."""
    # DataLoader forbids the assignment, because its sampler would be another dataset's.
    object.__setattr__(loader, "dataset", _SeededDataset(loader.dataset))


def draws_nothing(dataset: Any) -> bool:
    """Whether the dataset is known to draw nothing, which saves the time for seeds."""
    if type(dataset) is Subset:
        return draws_nothing(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(draws_nothing, dataset.datasets))
    return type(dataset) is TensorDataset
