"""Watch loaders that farandole does not split, and report what would hang, or train on copies."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ...adapters import DataError
from ...adapters.torch.strategy import TorchStrategy
from .in_place_of import InPlaceOf


def watch(
    loader: Any,
    adapter: TorchStrategy,
    training: bool,
    refuse_copies: bool,
    timed: Callable[[Iterable[Any]], Iterable[Any]] | None = None,
) -> Any:
    """Return `loader`, or a wrapper that compares it with the other workers' loaders while it is read.

    Args:
        refuse_copies: refuse workers that all get the same first batch.
        timed: yields what is loaded, and times the wait for it; `None` if no one needs it.

    Raises:
        DataError: the workers' loaders have different lengths, so some would wait for the others for ever.
    """
    length = _length(loader)
    lengths = adapter.gather(length)
    if len(set(lengths)) > 1:
        found = ", ".join("unknown" if length is None else str(length) for length in lengths)
        raise DataError(
            f"the workers' DataLoaders have different numbers of batches ({found}), and a step needs all workers: give "
            "all the same number, or let farandole split the data (no sampler by rank, use_distributed_sampler=True)"
        )
    if length is not None and not (training and refuse_copies) and timed is None:
        return loader
    kind = WatchedLoader if length is None else _SizedWatchedLoader
    several = adapter.worker.world_size > 1
    return kind(loader, adapter, length is None and several, training and refuse_copies and several, timed or iter)


class WatchedLoader(InPlaceOf):
    """A loader that ends on all workers after the same batch, or raises an error on all of them."""

    def __init__(
        self,
        loader: Any,
        adapter: TorchStrategy,
        compare_ends: bool,
        compare_first: bool,
        timed: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> None:
        super().__init__(loader, loader)
        self._adapter = adapter
        self._compare_ends = compare_ends
        self._compare_first = compare_first
        self._timed = timed

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._timed(self._loader))
        end = object()
        while True:
            batch = next(batches, end)
            if self._compare_ends:
                self._look_for_ends(batch is end)
            if batch is end:
                return
            if self._compare_first:
                self._compare_first = False
                self._look_for_copies(batch)
            yield batch

    def _look_for_ends(self, ended: bool) -> None:
        count = torch.tensor([int(ended)], device=self._adapter.device)
        at_end = int(self._adapter.start_all_reduce(count, "sum", "loader")().item())
        world_size = self._adapter.worker.world_size
        if 0 < at_end < world_size:
            raise DataError(
                f"the IterableDataset ended on {at_end} of {world_size} workers, and the others cannot train on their "
                "remaining batches alone: yield the same number on all workers"
            )

    def _look_for_copies(self, batch: Any) -> None:
        digests = self._adapter.gather(_digest(batch))
        if len(set(digests)) == 1:
            raise DataError(
                "every worker got the same first batch of its IterableDataset, so all of them would train on every "
                "sample. Yield another part on each (torch.distributed's get_rank() and get_world_size() help), or "
                "pass use_distributed_sampler=False if it is meant"
            )


class _SizedWatchedLoader(WatchedLoader):
    def __len__(self) -> int:
        return len(self._loader)


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _digest(batch: Any) -> int:
    stream = io.BytesIO()
    torch.save(batch, stream)
    return zlib.crc32(stream.getvalue())
