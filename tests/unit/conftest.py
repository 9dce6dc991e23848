"""What tests of the PyTorch strategies in this process need."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from farandole.adapters import Strategy

LAUNCHERS = ("HOROVOD_", "OMPI_", "SLURM_", "TF_CONFIG", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    # DeepSpeed's strategy sets it; that must end with the test.
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("LOCAL_RANK")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """More of them are slower with tensors this small, and much slower on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def strategy(no_launcher: None, one_thread: None) -> Iterator[Strategy]:
    from farandole.adapters import create_strategy

    with create_strategy("local", device="cpu") as strategy, strategy.scope():
        yield strategy
