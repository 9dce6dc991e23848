"""What an engine can do, as frozen flags that callers ask instead of testing types."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

REAL = frozenset({"float32", "float64"})
COMPLEX = frozenset({"complex64", "complex128"})
"""Types of parameters, as both frameworks name them."""

Framework = Literal["torch", "tensorflow"]
Shard = Literal["parameters", "gradients", "optimizer"]


@dataclass(frozen=True)
class Capabilities:
    """Properties of a strategy with the options it was created with.

    framework: whose tensors, models and optimizers it takes.
    accelerators: device types it trains on.
    dtypes: types of parameters that it trains exactly, as the framework names them.
    shards: what each worker holds only a shard of; empty where every worker holds a whole replica.
    accumulates_locally: whether gradients are reduced only after the last micro-batch of a step (as with `no_sync`).
    threads: whether the engine runs threads in each worker, so that forking is not safe.
    survives_failure: whether the surviving workers of a failed job can continue in their processes.
    asynchronous: whether workers may update from gradients of different steps.
    exact: whether the update equals one process's on the same global batch, up to rounding; false where an option is
        lossy (compression, Adasum, PowerSGD).
    """

    framework: Framework
    accelerators: frozenset[str] = frozenset({"cpu"})
    dtypes: frozenset[str] = REAL
    shards: frozenset[Shard] = frozenset()
    accumulates_locally: bool = True
    threads: bool = True
    survives_failure: bool = False
    asynchronous: bool = False
    exact: bool = True
