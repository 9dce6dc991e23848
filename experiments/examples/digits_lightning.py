"""Train a small convolutional network to read scanned digits with Lightning's Trainer, under any launcher.

    python digits_lightning.py --strategy horovod --devices 2
    horovodrun -np 2 python digits_lightning.py --strategy horovod
    deepspeed --no_local_rank --num_accelerators 2 digits_lightning.py --strategy deepspeed_zero_2
    torchrun --nproc-per-node 2 digits_lightning.py --strategy deepspeed_zero_2
    farandole run --strategy horovod -n 2 digits_lightning.py

It differs from a program for Lightning alone in the import of the plugin and the name of the strategy.
"""

from __future__ import annotations

import argparse
import os

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import farandole.plugins.lightning  # noqa: F401  (registers the strategies' names)

Scans = list[Tensor]  # images (N, 1, 8, 8) from 0 to 1, and their digits (N,)


class DigitReader(pl.LightningModule):
    """The network, its loss and its optimizer. It is smooth: ReLU and max pooling would amplify rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *convolution(1, 16),
            *convolution(16, 32),
            nn.AvgPool2d(2),
            *convolution(32, 64),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.network(images)
        return outputs

    def training_step(self, scans: Scans) -> Tensor:
        images, labels = scans
        return cross_entropy(self(images), labels)

    def validation_step(self, scans: Scans) -> None:
        images, labels = scans
        outputs = self(images)
        self.log("loss", cross_entropy(outputs, labels), sync_dist=True)
        self.log("accuracy", (outputs.argmax(1) == labels).float().mean(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a 3 x 3 convolution, normalized within each scan: the same on any number of workers."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(4, outputs), nn.GELU()


def load_scans() -> tuple[TensorDataset, TensorDataset]:
    """Return 1500 scans to train on and 297 to test on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    training, test = train_test_split(range(len(labels)), test_size=297, random_state=0, stratify=labels)
    return TensorDataset(images[training], labels[training]), TensorDataset(images[test], labels[test])


def main() -> None:
    """Train, and print the loss and the accuracy on held-out scans."""
    arguments = argparse.ArgumentParser(description="Read scanned digits.")
    asked = os.environ.get("FARANDOLE_STRATEGY", "horovod")
    arguments.add_argument("--strategy", default=asked, help="default: that of `farandole run`, or horovod")
    arguments.add_argument("--devices", default="auto", help="workers to start here; under a launcher, leave it out")
    arguments.add_argument("--max-epochs", type=int, default=10)
    arguments.add_argument("--batch-size", type=int, default=32, help="scans in a batch of one worker")
    options = arguments.parse_args()

    pl.seed_everything(0)
    training_scans, test_scans = load_scans()
    trainer = pl.Trainer(
        strategy=options.strategy,
        devices=options.devices,
        max_epochs=options.max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    model = DigitReader()
    trainer.fit(model, DataLoader(training_scans, options.batch_size, shuffle=True), DataLoader(test_scans, 100))
    (results,) = trainer.validate(model, DataLoader(test_scans, 100), verbose=False)
    if trainer.is_global_zero:
        print(f"{options.strategy}: {results['accuracy']:.1%} of {len(test_scans)} scans read correctly")
        print(f"final loss: {results['loss']:.9f}")


if __name__ == "__main__":
    main()
