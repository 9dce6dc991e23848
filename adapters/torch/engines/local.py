"""Plain PyTorch in one process: the reference for every other engine."""

from __future__ import annotations

from typing import Any

import torch

from ...capabilities import COMPLEX, REAL, Capabilities
from ...errors import LauncherError
from ...strategy import ReduceOp
from ..engine import Engine
from ..strategy import Finish, TorchStrategy


class LocalStrategy(TorchStrategy):
    """Plain PyTorch in one process, without an engine: the reference for every other strategy.

    Use it to write and debug a program, and if one process is enough: all other strategies have its loss curve. Several
    workers are refused.

    Raises:
        LauncherError: a launcher started several workers, and each would train on all data.
    """

    capabilities = Capabilities("torch", accelerators=frozenset({"cpu", "cuda"}), dtypes=REAL | COMPLEX, threads=False)

    def __init__(self, device: str | None = None) -> None:
        super().__init__(device)
        if self.worker.world_size > 1:
            raise LauncherError(
                f"strategy 'local' is one process, but {self.launch.launcher} started {self.worker.world_size} "
                "workers: choose another strategy, for example 'ddp', or start one worker"
            )

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        return Engine(module, optimizer)

    def start_all_reduce(self, tensor: torch.Tensor, op: ReduceOp, name: str) -> Finish:
        return lambda: tensor

    def _gather(self, value: Any) -> list[Any]:
        return [value]

    def _broadcast(self, value: Any, root: int) -> Any:
        return value

    def _barrier(self) -> None:
        pass
