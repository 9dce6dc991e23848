"""A LightningCLI program, whose strategy is in a configuration file."""

from __future__ import annotations

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader, TensorDataset

import farandole.plugins.lightning  # noqa: F401


class Module(pl.LightningModule):
    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate = rate
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.layer(batch[0]).square().mean()

    def train_dataloader(self) -> DataLoader[list[torch.Tensor]]:  # type: ignore[override]
        return DataLoader(TensorDataset(torch.ones(8, 2)), 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.rate)

    def on_train_end(self) -> None:
        strategy = self.trainer.strategy
        self.print(f"trained by {type(strategy).__name__}, {strategy.adapter.capabilities}", flush=True)


if __name__ == "__main__":
    LightningCLI(Module, save_config_callback=None)
