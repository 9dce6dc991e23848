"""A strategy of one process: the block that it works in, its device, and its collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farandole.adapters import LauncherError, OptionError, Strategy, StrategyStateError, create_strategy

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")


def test_a_strategy_works_inside_its_block_only_and_once() -> None:
    strategy = create_strategy("local")
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters())
    calls: list[Callable[[], Any]] = [
        lambda: strategy.prepare(model, optimizer, lambda model, batch: model(batch).mean()),
        lambda: strategy.scope().__enter__(),
        lambda: strategy.reduce(1),
        lambda: strategy.gather(1),
        lambda: strategy.broadcast(1),
        lambda: strategy.barrier(),
    ]
    for state in ("new", "left"):
        for call in calls:
            with pytest.raises(StrategyStateError, match=f"inside `with strategy:` only; this one is {state}"):
                call()
        if state == "new":
            with strategy:
                pass
    with pytest.raises(StrategyStateError, match="strategy 'local' was used before: create a new one"), strategy:
        pass


def test_local_refuses_to_be_one_of_several_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LauncherError, match=r"'local' is one process, but environment started 2 workers.*'ddp'"):
        create_strategy("local")


def test_a_device_is_cpu_or_cuda() -> None:
    with pytest.raises(OptionError, match="device='tpu' must be 'cpu' or 'cuda'"):
        create_strategy("local", device="tpu")
    assert create_strategy("local", device="cpu").device == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced_by_the_cpu() -> None:
    with pytest.raises(OptionError, match="device='cuda' was asked for, but PyTorch finds no CUDA GPU"):
        create_strategy("local", device="cuda")


@pytest.mark.parametrize("op", ["mean", "sum", "max", "min"])
@pytest.mark.parametrize(
    "value",
    [
        2.5,
        3,
        True,
        torch.tensor([1.5, 2.5], dtype=torch.float16),
        torch.tensor([1, 2]),
        np.array([1.5, 2.5], np.float32),
    ],
    ids=["float", "int", "bool", "half", "integers", "array"],
)
def test_a_reduction_keeps_type_and_shape_but_a_mean_is_no_integer(strategy: Strategy, op: Any, value: Any) -> None:
    reduced = strategy.reduce({"a": [value]}, op)["a"][0]
    assert type(reduced) is (
        float if op == "mean" and isinstance(value, int) else int if value is True else type(value)
    )
    if isinstance(value, (torch.Tensor, np.ndarray)):
        whole = "int" in str(value.dtype) and op == "mean"
        assert str(reduced.dtype).removeprefix("torch.") == (
            "float64" if whole else str(value.dtype).removeprefix("torch.")
        )
        assert reduced.tolist() == value.tolist()
        assert reduced is not value
    else:
        assert reduced == value


@pytest.mark.parametrize("op", ["mean", "sum"])
def test_a_reduction_leaves_its_argument_alone(strategy: Strategy, op: Any) -> None:
    value = torch.ones(2)
    strategy.reduce(value, op).add_(1)
    assert value.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("value", "op", "said"),
    [
        ("text", "mean", "cannot reduce a str"),
        (None, "mean", "cannot reduce a NoneType"),
        (torch.zeros(1, dtype=torch.complex64), "mean", "cannot reduce complex numbers"),
        (1.0, "avg", "cannot reduce with 'avg': use one of mean, sum, max, min"),
    ],
)
def test_what_cannot_be_reduced_is_refused(strategy: Strategy, value: Any, op: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        strategy.reduce(value, op)


def test_a_broadcast_from_nobody_is_refused(strategy: Strategy) -> None:
    with pytest.raises(OptionError, match="there is no worker 1 among 1"):
        strategy.broadcast("x", root=1)
