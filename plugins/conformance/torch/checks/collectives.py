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


@TORCH.add
def tensors_in_objects_arrive_on_the_receivers_device(strategy: Strategy, folder: Path) -> None:
    """Those that were on the CPU stay there."""
    device, rank, world_size = strategy.device, strategy.worker.rank, strategy.worker.world_size
    mine = {"here": [torch.full((2,), float(rank), device=device)], "cpu": torch.full((2,), float(rank))}
    for root in range(world_size):
        for found in (strategy.gather(mine)[root], strategy.broadcast(mine, root)):
            assert (found["here"][0].device, found["cpu"].device.type) == (device, "cpu")
            assert found["here"][0].tolist() == found["cpu"].tolist() == [float(root)] * 2
