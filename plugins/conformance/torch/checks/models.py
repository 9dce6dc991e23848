"""Contract 2 and 7: several models of one strategy, and what is done with a model beside training steps."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .....adapters import Strategy
from .table import TORCH

_DATA = torch.linspace(-1, 1, 144).sin().reshape(24, 6)


class _Heard(io.StringIO):
    """What is said on a worker; a file tells the others that it was."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = file

    def write(self, text: str) -> int:
        self._file.touch()
        return super().write(text)


@TORCH.add
def a_worker_that_runs_the_model_alone_is_named(strategy: Strategy, folder: Path) -> None:
    """Where its parameters are gathered it waits for the others, which may still come."""
    heard, main = _Heard(folder / "heard"), strategy.worker.is_main
    with strategy.scope():
        model = nn.Sequential(nn.Linear(6, 400), nn.GELU(), nn.Linear(400, 400), nn.Linear(400, 1))
        training: Any = strategy.prepare(
            model, torch.optim.SGD(model.parameters(), lr=0.01), lambda m, x: m(x).square().mean()
        )
    before, after, _ = training.batches(_DATA, 8)
    training.step(before)
    gathers = "parameters" in strategy.capabilities.shards and strategy.worker.world_size > 1
    if gathers:
        training.engine.passes.patience = 0.1
    strategy.barrier()
    with torch.no_grad(), contextlib.redirect_stderr(heard) if main else contextlib.nullcontext():
        if main:
            model(_DATA)
        elif gathers:
            until = time.monotonic() + 60
            while not (folder / "heard").exists():
                assert time.monotonic() < until, "nobody was named"
                time.sleep(0.02)
            model(_DATA)
    if gathers and main:
        assert "worker 0 called the model outside of a training step, and worker" in heard.getvalue()
    assert float(training.step(after)) > 0
