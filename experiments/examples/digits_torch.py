"""Train a small convolutional network to read scanned digits: one program for every strategy, on any number of workers.

    farandole run --strategy ddp -n 2 digits_torch.py

The curve, and so the network, is the same with every strategy and number of workers.
"""

# Only public imports, so that you can start from a copy of this file.
from __future__ import annotations

import math
from collections.abc import Callable
from typing import SupportsFloat

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from farandole.adapters import Batch, create_strategy

GLOBAL_BATCH_SIZE = 64  # scans in a step, over all workers
Scans = tuple[Tensor, Tensor]  # images (N, 1, 8, 8) from 0 to 1, and their digits (N,)


def train(epochs: int = 10, on_step: Callable[[Batch, SupportsFloat], None] | None = None) -> float:
    """Train under the strategy that this process was started for; return the accuracy on held-out scans."""
    training_scans, test_scans = load_scans()
    with create_strategy() as strategy, strategy.scope():
        torch.manual_seed(0)
        model = build_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        steps = epochs * math.ceil(len(training_scans[0]) / GLOBAL_BATCH_SIZE)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        training = strategy.prepare(model, optimizer, loss_fn, scheduler)
        for batch in training.batches(training_scans, GLOBAL_BATCH_SIZE, epochs=epochs, seed=0):
            loss = training.step(batch)
            if on_step is not None:
                on_step(batch, loss)
        result: float = training.evaluate(test_scans, accuracy, GLOBAL_BATCH_SIZE)
        if strategy.worker.is_main:
            print(f"{strategy.name}: {result:.1%} of {len(test_scans[0])} scans read correctly")
    return result


def load_scans() -> tuple[Scans, Scans]:
    """Return 1500 scans to train on and 297 to test on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    training, test = train_test_split(range(len(labels)), test_size=297, random_state=0, stratify=labels)
    return (images[training], labels[training]), (images[test], labels[test])


def build_model() -> nn.Module:
    """Return the network. It is smooth: ReLU and max pooling would make the curve sensitive to rounding."""
    return nn.Sequential(
        *convolution(1, 16),
        *convolution(16, 32),
        nn.AvgPool2d(2),
        *convolution(32, 64),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 2 * 2, 10),
    )


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Return a 3 x 3 convolution, normalized within each scan: the same on any number of workers."""
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.GroupNorm(4, outputs), nn.GELU()


def loss_fn(model: nn.Module, scans: Scans) -> Tensor:
    """Return the mean loss of a micro-batch."""
    images, labels = scans
    return cross_entropy(model(images), labels)


def accuracy(model: nn.Module, scans: Scans) -> Tensor:
    """Return the model's accuracy on a micro-batch."""
    images, labels = scans
    right: Tensor = model(images).argmax(1) == labels
    return right.float().mean()


if __name__ == "__main__":
    train()
