"""Contract 2 and 7: several models of one strategy, and uses of a model outside of training steps."""

from __future__ import annotations

import contextlib
import gc
import io
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from .....adapters import Strategy, StrategyStateError
from ...checks.common import same_everywhere, weights_of
from ...variants import LOSS_BOUND, WEIGHT_BOUND
from .table import TORCH

_DATA = torch.linspace(-1, 1, 144).sin().reshape(24, 6)


@TORCH.add
def a_loss_may_run_through_a_model_of_another_training(strategy: Strategy, folder: Path) -> None:
    """A generator and a discriminator: in the step of one, the other gets no gradients."""

    def build() -> tuple[list[nn.Module], list[torch.optim.Optimizer]]:
        torch.manual_seed(3)
        models: list[nn.Module] = [nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 1))]
        return models, [torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.1) for model in models]

    def generated(generator: nn.Module, discriminator: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = (discriminator(generator(batch)) - 1).square().mean()
        return loss

    def discriminated(generator: nn.Module, discriminator: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fake = generator(batch)
        loss: torch.Tensor = (discriminator(batch) - 1).square().mean() + discriminator(fake).square().mean()
        return loss

    (plain_g, plain_d), optimizers = build()
    expected = []
    for first in (0, 8, 16, 0, 8, 16):
        for loss_of, optimizer in zip((discriminated, generated), reversed(optimizers), strict=True):
            plain_g.zero_grad()
            plain_d.zero_grad()
            loss = loss_of(plain_g, plain_d, _DATA[first : first + 8])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            expected.append(loss.item())
    with strategy.scope():
        (generator, discriminator), (of_generator, of_discriminator) = build()
    train_d = strategy.prepare(discriminator, of_discriminator, lambda d, x: discriminated(generator, d, x))
    train_g = strategy.prepare(generator, of_generator, lambda g, x: generated(g, discriminator, x))
    losses = []
    for batch in train_d.batches(_DATA, 8, epochs=2, shuffle=False):
        losses += [float(train_d.step(batch)), float(train_g.step(batch))]
    assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"], abs=LOSS_BOUND["float32"])
    for training, plain in ((train_g, plain_g), (train_d, plain_d)):
        found = weights_of(training)
        assert same_everywhere(strategy, found.values())
        for name, weight in plain.state_dict().items():
            assert np.linalg.norm(found[name] - weight.numpy()) <= WEIGHT_BOUND["float32"] * weight.norm(), name


class _Heard(io.StringIO):
    """A worker's output; a file shows the others that there was some."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def write(self, text: str) -> int:
        if "called the model" in text:
            self._file.touch()
        return super().write(text)


@TORCH.add
def a_worker_that_runs_the_model_alone_is_named(strategy: Strategy, folder: Path) -> None:
    """If parameters are gathered, the pass waits for the others, which may still come."""
    heard, main = _Heard(folder / "heard"), strategy.worker.is_main
    with strategy.scope():
        model = nn.Sequential(nn.Linear(6, 400), nn.GELU(), nn.Linear(400, 400), nn.Linear(400, 1))
        training: Any = strategy.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.01), lambda m, x: m(x).square().mean()
        )
    before, after, _ = training.batches(_DATA, 8)
    training.step(before)
    gathers = "parameters" in strategy.capabilities.shards and strategy.worker.world_size > 1
    if gathers and strategy.device.type != "cpu":
        return  # the stream waits, not the host
    data = _DATA.to(strategy.device)
    if gathers:
        training.engine.passes.patience = 0.1
    strategy.barrier()
    with torch.no_grad(), contextlib.redirect_stderr(heard) if main else contextlib.nullcontext():
        if main:
            model(data)
        elif gathers:
            until = time.monotonic() + 60
            while not (folder / "heard").exists():
                assert time.monotonic() < until, "no worker was named"
                time.sleep(0.02)
            model(data)
    if gathers and main:
        assert "worker 0 called the model outside of a training step, and worker" in heard.getvalue()
    assert float(training.step(after)) > 0


@TORCH.add
def a_dropped_training_is_freed(strategy: Strategy, folder: Path) -> None:
    """A search over many models prepares each in a strategy that stays open."""

    def train() -> dict[str, weakref.ref[Any]]:
        with strategy.scope():
            model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        training: Any = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), accumulate=2)
        for batch in training.batches(_DATA, 8):
            training.step(batch)
        return {"engine": weakref.ref(training.engine), "model": weakref.ref(model)}

    dropped = train()
    gc.collect()
    assert not [name for name, reference in dropped.items() if reference() is not None]


@TORCH.add
def a_step_by_hand_is_refused(strategy: Strategy, folder: Path) -> None:
    """Its gradients are local: the message says what to write instead."""
    with strategy.scope():
        model = nn.Linear(6, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training: Any = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    first, second, _ = training.batches(_DATA, 8)
    training.step(first)
    for micro_batch in second.micro:
        model(micro_batch).square().mean().backward()
    with pytest.raises(StrategyStateError, match=r"Write training.step\(batch\) in the place of both"):
        training.optimizer.step()
