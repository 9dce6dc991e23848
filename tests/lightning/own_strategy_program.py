"""Farandole's callbacks on one of Lightning's own strategies, on two workers.

python own_strategy_program.py STRATEGY FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from scenarios.setting import Net, Watcher, data
from torch.utils.data import DataLoader

from farandole.plugins.launch.job import watch_stacks
from farandole.plugins.lightning import GradientCheckpointing, LightningCallback, WorkerMetrics
from farandole.plugins.metrics import Reader, Window


class Losses(Net):
    """Keeps the mean of each two micro-batches' losses."""

    def training_step(self, batch: object, batch_idx: int) -> object:
        loss = super().training_step(batch, batch_idx)
        self.seen.append(float(loss))
        return loss


class Counting(torch.nn.GELU):
    """Counts its forward passes."""

    passes = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.passes += 1
        return super().forward(x)


def main() -> None:
    watch_stacks()
    watcher, timing, net = Watcher(halves=True), WorkerMetrics(sys.argv[2], every=2), Losses()
    checkpointing, counting = GradientCheckpointing(["layers.0", "layers.1"], budget=1.0), Counting()
    net.layers[1] = counting
    whole = net.layers[2].weight.detach().clone()
    trainer = pl.Trainer(
        strategy=sys.argv[1],
        devices=2,
        accelerator="cpu",
        max_epochs=2,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[LightningCallback(watcher), timing, checkpointing],
    )
    trainer.fit(net, DataLoader(data(48), 6))
    watcher.check([2, 2] * 2, fetched=False)
    own = [float(record.loss) for record in watcher.records]
    expected = [sum(net.seen[first : first + 2]) / 2 for first in range(0, 8, 2)]
    assert own == pytest.approx(expected, rel=1e-6), "this worker's"
    assert (net.layers[2].weight - whole / 2).abs().max() < 0.1
    assert timing.folder == Path(sys.argv[2])
    windows = [record for record in Reader(timing.folder).poll() if isinstance(record, Window)]
    own_windows = [window for window in windows if window.rank == trainer.global_rank]
    assert [(window.step, window.steps) for window in own_windows] == [(2, 2), (4, 2)]
    assert counting.passes == 8 + 2, "the first step is computed again, and then everything fits"
    assert checkpointing.plan is not None and checkpointing.plan.layers == ()
    print(f"worker {trainer.global_rank} is done\n", end="", flush=True)


if __name__ == "__main__":
    main()
