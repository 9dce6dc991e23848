"""Contract 3: every sample once."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .....adapters import Progress, Strategy
from ... import curves
from ...variants import SEED, VARIANTS
from .table import TORCH


@TORCH.add
def every_sample_comes_once(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["accumulate_4"], "float32")
    length, size = 37, 2 * strategy.worker.world_size + 1
    for start in (Progress(), Progress(1, 2)):
        own: dict[int, list[int]] = {epoch: [] for epoch in range(3)}
        epoch = start.epoch
        for batch in training.batches(torch.arange(length), size, epochs=3, seed=2, start=start):
            for micro, weight in zip(batch.micro, batch.weights, strict=True):
                own[epoch] += micro.tolist() if weight else []
            epoch = batch.progress.epoch
        for epoch, shares in enumerate(zip(*(rank.values() for rank in strategy.gather(own)), strict=True)):
            seen = sorted(index for share in shares for index in share)
            if epoch > start.epoch or start == Progress():
                assert seen == list(range(length)), f"epoch {epoch} from {start}"
            elif epoch == start.epoch:
                assert len(seen) == len(set(seen)) == length - start.step * size


# Not empty in a worker that ran the check below, nor in processes forked from it.
_RANKS_HERE: list[int] = []


class _Forked(torch.utils.data.Dataset[bool]):
    """Sample i says whether it was loaded in a fork of a worker."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> bool:
        return bool(_RANKS_HERE)


@TORCH.add
def loader_processes_are_no_forks_beside_threads(strategy: Strategy, folder: Path) -> None:
    """A fork hangs if a thread of the engine holds a lock at that moment."""
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    _RANKS_HERE.append(strategy.worker.rank)
    size = 2 * strategy.worker.world_size
    forked = [bool(micro.any()) for batch in training.batches(_Forked(), size, num_workers=1) for micro in batch.micro]
    assert forked and not (any(forked) and strategy.capabilities.threads)


@TORCH.add
def samples_do_not_depend_on_the_worker(strategy: Strategy, folder: Path) -> dict[str, float]:
    """Return the random number of each sample, which must be the same at any world size."""

    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 11

        def __getitem__(self, index: int) -> tuple[int, float]:
            return index, random.random() + float(np.random.rand()) + float(torch.rand(()))

    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    drawn = {}
    for number, batch in enumerate(training.batches(Noisy(), 4, epochs=2, seed=SEED)):
        if batch.weights[0]:
            for index, value in zip(*batch.micro[0], strict=True):
                drawn[f"{number // 3}/{int(index)}"] = float(value)
    everything = {key: value for own in strategy.gather(drawn) for key, value in own.items()}
    assert len(everything) == 22 and len(set(everything.values())) == 22
    return dict(sorted(everything.items()))
