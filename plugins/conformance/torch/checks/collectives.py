"""Contract 5: collectives mean the same inside of PyTorch's own modes."""

from __future__ import annotations

from pathlib import Path

import torch

from .....adapters import Strategy
from .table import TORCH


@TORCH.add
def collectives_work_in_inference_mode(strategy: Strategy, folder: Path) -> None:
    rank, ranks = strategy.worker.rank, range(strategy.worker.world_size)
    with torch.inference_mode():
        own = torch.full((2,), float(rank))
        assert strategy.reduce({"own": own}, "sum")["own"].tolist() == [float(sum(ranks))] * 2
        assert [part.tolist() for part in strategy.gather(own)] == [[float(r)] * 2 for r in ranks]
        assert strategy.broadcast(own).tolist() == [0.0, 0.0]
