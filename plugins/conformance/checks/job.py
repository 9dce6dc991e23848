"""Contract 5 and 8: collectives, and no silent fallback."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ....adapters import (
    FarandoleError,
    OptionError,
    Strategy,
    StrategyStateError,
    create_strategy,
)
from ..framework import program_of
from .common import SHARED

# 5. Collectives.


@SHARED.add
def collectives_do_what_they_say(strategy: Strategy, folder: Path) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    ranks, tensor = range(world_size), program_of(strategy).tensor
    mine: dict[str, Any] = {
        "number": rank + 0.5,
        "list": [np.arange(3) + rank, tensor([rank, rank], "float32")],
        "count": 2**40 + rank,
    }
    total = strategy.reduce(mine, "sum")
    assert total["number"] == sum(r + 0.5 for r in ranks)
    assert total["count"] == sum(2**40 + r for r in ranks) and isinstance(total["count"], int)
    assert isinstance(total["list"][0], np.ndarray) and (total["list"][0] == sum(np.arange(3) + r for r in ranks)).all()
    mean = strategy.reduce(mine)
    assert np.asarray(mean["list"][1]).tolist() == [sum(ranks) / world_size] * 2
    assert mean["count"] == pytest.approx(2**40 + sum(ranks) / world_size, rel=1e-15)
    assert strategy.reduce(rank, "max") == world_size - 1 and strategy.reduce(rank, "min") == 0
    assert np.asarray(mine["list"][1]).tolist() == [float(rank)] * 2, "a reduction changed its argument"
    small = strategy.reduce([np.array([200], np.uint8), tensor([200], "uint8")], "sum")
    assert [np.asarray(leaf).tolist() for leaf in small] == [[200 * world_size]] * 2
    assert strategy.reduce(np.array([rank], np.uint8), "max").dtype == np.uint8
    half = tensor(257.0, "bfloat16")
    assert strategy.reduce(half, "sum").dtype == half.dtype
    assert strategy.gather({"rank": rank, "text": "x" * rank}) == [{"rank": r, "text": "x" * r} for r in ranks]
    kinds = strategy.gather(None if rank == 0 else "another type")
    assert kinds == [None] + ["another type"] * (world_size - 1)
    for root in ranks:
        assert strategy.broadcast(("from", rank), root) == ("from", root)
    with pytest.raises(OptionError, match="no worker"):
        strategy.broadcast(1, root=world_size)
    with pytest.raises(OptionError, match="average"):
        strategy.reduce(1, "average")  # type: ignore[arg-type]


@SHARED.add
def barrier_blocks(strategy: Strategy, folder: Path) -> None:
    strategy.barrier()
    started = time.monotonic()
    if strategy.worker.rank == strategy.worker.world_size - 1:
        time.sleep(0.3)
    strategy.barrier()
    assert time.monotonic() - started > 0.25


# 8. No silent fallback.


@SHARED.add
def a_strategy_is_used_once_and_inside(strategy: Strategy, folder: Path) -> None:
    with pytest.raises(StrategyStateError, match="create a new one"):
        strategy.__enter__()
    with pytest.raises(StrategyStateError, match="inside"):
        create_strategy(strategy.name).barrier()
    with pytest.raises(FarandoleError, match="no option"):
        create_strategy(strategy.name, no_such_option=1)
