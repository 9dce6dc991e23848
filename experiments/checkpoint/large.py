"""Save and load a large state, and measure time and memory."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...adapters import Progress, Strategy, create_strategy
from ..peak import peak_growth
from ..progress import tell
from . import raw
from .bounds import LAYER_BYTES, WIDTH

_SMALL = 1  # layers of a first save and load, so that imports, threads and connections are not measured


def time_saves(strategy_name: str, layers: int, saves: int, folder: Path) -> dict[str, Any]:
    """Leave a checkpoint for `time_load`, then save in pairs, ours and raw in alternating order.

    Returns:
        "ours", "raw": seconds of each save, until the slowest worker has finished.
        "shard", "peak": bytes of the state that this worker holds, and at the peak of a save of ours.

    Raises:
        RuntimeError: a side did not write the whole state once, so its times are invalid.
    """
    with create_strategy(strategy_name) as strategy:
        worker = strategy.worker
        small = _prepare(strategy, _SMALL)
        small.save(_place(folder, strategy, "small"), _step(strategy, small))
        del small
        training = _prepare(strategy, layers)
        progress = _step(strategy, training)
        shard = held_bytes(training)
        strategy.barrier()
        growth = peak_growth(lambda: training.save(_place(folder, strategy, "large"), progress))

        state = raw.STATES[strategy_name](training, worker)
        sides: dict[str, Callable[[Path], None]] = {
            "ours": lambda path: training.save(path, progress),
            "raw": lambda path: raw.save(state, path, worker),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        _time(strategy, sides["raw"], _place(folder, strategy, "raw"), layers)  # ours had its first save above
        for number in range(saves):
            tell(f"pair {number + 1} of {saves}")
            for name in sorted(sides, reverse=number % 2 == 1):
                path = _place(folder, strategy, f"{name}-{number}")
                seconds[name].append(_time(strategy, sides[name], path, layers))
    return {**seconds, "shard": shard, "peak": shard + growth}


def time_load(strategy_name: str, layers: int, folder: Path) -> dict[str, Any]:
    """Load the checkpoint of `time_saves`; its files are likely to be in the machine's cache.

    Returns:
        "load": seconds, until the slowest worker has finished.
        "shard", "peak": bytes of the state that this worker holds after the load, and at its peak.
    """
    with create_strategy(strategy_name) as strategy:
        small = _prepare(strategy, _SMALL)
        small.load(_place(folder, strategy, "small"))
        del small
        training = _prepare(strategy, layers)
        before = held_bytes(training)  # the optimizer has no state yet
        seconds = []

        def load() -> None:
            strategy.barrier()
            started = time.perf_counter()
            training.load(_place(folder, strategy, "large"))
            strategy.barrier()
            seconds.append(time.perf_counter() - started)

        growth = peak_growth(load)
        return {"load": seconds[0], "shard": held_bytes(training), "peak": before + growth}


def held_bytes(training: Any) -> int:
    """Return the bytes of parameters and optimizer that this worker updates: all, or its shard."""
    shards = [training.engine.shard(parameter) for parameter in training.engine.parameters]
    return sum(tensor.nbytes for shard in shards for tensor in (shard.weight, *shard.slots.values()))


def _prepare(strategy: Strategy, layers: int) -> Any:
    with strategy.scope():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
        return strategy.prepare(model, torch.optim.Adam(model.parameters(), lr=1e-4), _loss)


def _loss(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(inputs)
    return output.square().mean()


def _step(strategy: Strategy, training: Any) -> Progress:
    """Train one step, in which the optimizer creates its slots."""
    workers = strategy.worker.world_size
    (batch,) = training.batches(torch.ones(workers, WIDTH), workers)
    training.step(batch)
    progress: Progress = batch.progress
    return progress


def _time(strategy: Strategy, save: Callable[[Path], None], path: Path, layers: int) -> float:
    if strategy.worker.is_main:
        os.sync()  # so that this save does not wait for earlier writes
    strategy.barrier()
    started = time.perf_counter()
    save(path)
    strategy.barrier()
    seconds = time.perf_counter() - started
    if strategy.worker.is_main:
        written = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if not 1 <= written / (layers * LAYER_BYTES) < 1.02:
            raise RuntimeError(f"{path.name}: {written} bytes were written for a state of {layers * LAYER_BYTES}")
        shutil.rmtree(path)
    return seconds


def _place(folder: Path, strategy: Strategy, name: str) -> Path:
    return folder / f"{strategy.name}-{strategy.worker.world_size}-{name}"
