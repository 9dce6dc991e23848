"""Train a small transformer to predict the next byte of Python's own standard library, with Lightning's Trainer.

    python bytes_lightning.py --strategy horovod --devices 2
    horovodrun -np 2 python bytes_lightning.py --strategy deepspeed_zero_2
    farandole run --strategy deepspeed_zero_3 -n 2 bytes_lightning.py --layers 4 --width 256

The curve is the same under every strategy, and at any number of workers with the same global batch.
"""

from __future__ import annotations

import argparse
import math
import os
import sysconfig
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

import farandole.plugins.lightning  # noqa: F401  (registers the strategies' names)

TEXT_BYTES = 2_000_000  # read from the standard library
HELD_OUT = 40  # one window of 40 is for validation


class Block(nn.Module):
    """A layer of the transformer: causal attention, then a feed-forward network."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, width / heads)
        attended = scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.attended(attended.transpose(1, 2).flatten(2))
        after: Tensor = x + self.feed_forward(x)
        return after


class ByteModel(pl.LightningModule):
    """A causal language model over bytes, with its loss, optimizer and learning rates.

    Args:
        width: of a byte's embedding; a multiple of 32, the width of an attention head.
        sequence_length: the most bytes of context.
    """

    def __init__(self, layers: int, width: int, sequence_length: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.bytes = nn.Embedding(256, width)
        self.positions = nn.Embedding(sequence_length, width)
        self.blocks = nn.Sequential(*(Block(width, width // 32) for _ in range(layers)))
        self.next_byte = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 256))

    def forward(self, text: Tensor) -> Tensor:
        positions = torch.arange(text.shape[1], device=text.device)
        logits: Tensor = self.next_byte(self.blocks(self.bytes(text) + self.positions(positions)))
        return logits

    def loss(self, windows: Tensor) -> Tensor:
        """Return the mean loss of a byte, in nats."""
        windows = windows.long()
        return cross_entropy(self(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())

    def training_step(self, batch: list[Tensor]) -> Tensor:
        loss = self.loss(batch[0])
        self.log("training_loss", loss, sync_dist=True, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        self.log("validation_loss", self.loss(batch[0]), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=0.1)
        steps = int(self.trainer.estimated_stepping_batches)
        warm_up = max(1, steps // 10)

        def factor(step: int) -> float:
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / (steps - warm_up))))
            return (step + 1) / warm_up if step < warm_up else cosine

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class StandardLibrary(pl.LightningDataModule):
    """Windows of the standard library's text, shuffled once.

    Args:
        batch_size: windows in a batch of one worker.
    """

    def __init__(self, sequence_length: int, batch_size: int) -> None:
        super().__init__()
        self.sequence_length = sequence_length
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        text = bytearray()
        for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            text += path.read_bytes()
        read = torch.frombuffer(text[:TEXT_BYTES], dtype=torch.uint8)
        windows = read.unfold(0, self.sequence_length + 1, self.sequence_length)
        windows = windows[torch.randperm(len(windows), generator=torch.Generator().manual_seed(0))]
        held_out = len(windows) // HELD_OUT
        self.training, self.validation = TensorDataset(windows[held_out:]), TensorDataset(windows[:held_out])

    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.training, self.batch_size)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(self.validation, self.batch_size)


def main() -> None:
    """Train, and print the model's bits per byte on held-out text."""
    arguments = argparse.ArgumentParser(description="Predict the next byte.")
    asked = os.environ.get("FARANDOLE_STRATEGY", "horovod")
    arguments.add_argument("--strategy", default=asked, help="default: that of `farandole run`, or horovod")
    arguments.add_argument("--devices", default="auto", help="workers to start here; under a launcher, leave it out")
    arguments.add_argument("--max-steps", type=int, default=100)
    arguments.add_argument("--precision", default="32-true")
    arguments.add_argument("--layers", type=int, default=2)
    arguments.add_argument("--width", type=int, default=128, help="a multiple of 32")
    arguments.add_argument("--sequence-length", type=int, default=128)
    arguments.add_argument("--batch-size", type=int, default=8, help="windows in a batch of one worker")
    arguments.add_argument("--accumulate", type=int, default=2, help="batches in a step")
    arguments.add_argument("--learning-rate", type=float, default=3e-3)
    arguments.add_argument("--checkpoints", help="a folder for the best model")
    options = arguments.parse_args()

    pl.seed_everything(0)
    best = ModelCheckpoint(options.checkpoints, monitor="validation_loss")
    trainer = pl.Trainer(
        strategy=options.strategy,
        devices=options.devices,
        precision=options.precision,
        max_steps=options.max_steps,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=1.0,
        val_check_interval=50 * options.accumulate,
        callbacks=[best] if options.checkpoints else [],
        enable_checkpointing=bool(options.checkpoints),
        logger=False,
    )
    model = ByteModel(options.layers, options.width, options.sequence_length, options.learning_rate)
    data = StandardLibrary(options.sequence_length, options.batch_size)
    trainer.fit(model, data)
    training_loss = trainer.callback_metrics["training_loss"].item()
    (results,) = trainer.validate(model, data, verbose=False)
    if trainer.is_global_zero:
        loss = results["validation_loss"]
        print(f"{options.strategy}: {loss / math.log(2):.3f} bits per byte after {trainer.global_step} steps")
        print(f"final training loss: {training_loss:.9f}")
        print(f"final loss: {loss:.9f}")


if __name__ == "__main__":
    main()
