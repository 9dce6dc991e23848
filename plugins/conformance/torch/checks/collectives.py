"""Contract 5: collectives work in PyTorch's own modes too."""

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
        assert [tensor.tolist() for tensor in strategy.gather(own)] == [[float(r)] * 2 for r in ranks]
        assert strategy.broadcast(own).tolist() == [0.0, 0.0]
