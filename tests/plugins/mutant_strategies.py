"""DDP with one fault in each, which the check of curves must find."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from farandole.adapters import Batch, Worker
from farandole.adapters.torch.engine import Engine
from farandole.adapters.torch.engines.ddp import DDPStrategy
from farandole.adapters.torch.training import TorchTraining


class WrongWeights(DDPStrategy):
    """Takes the plain mean of the workers' means, as if shares were even."""

    def _prepare(self, *arguments: Any) -> TorchTraining:
        class Training(TorchTraining):
            def step(self, batch: Batch) -> Any:
                ones = (1.0,) * len(batch.weights)
                everywhere = float(len(ones) * self._strategy.worker.world_size)
                return super().step(dataclasses.replace(batch, weights=ones, global_weight=everywhere))

        return Training(self, *arguments)


class WrongClip(DDPStrategy):
    """Clips each worker's own gradient, before it is reduced."""

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        class ClipsFirst(Engine):
            def clip_grad_norm(self, max_norm: float) -> None:
                super().clip_grad_norm(max_norm)
                self._average()
                self.averaged = True

            def update(self) -> None:
                if not self.__dict__.pop("averaged", False):
                    self._average()
                super().update()

            def _average(self) -> None:
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        dist.all_reduce(parameter.grad)
                        parameter.grad /= dist.get_world_size()

        return ClipsFirst(module, optimizer)


class WrongShard(DDPStrategy):
    """Trains every worker on the first worker's share."""

    def _prepare(self, *arguments: Any) -> TorchTraining:
        class Training(TorchTraining):
            def _batches(self, loader: Any, *more: Any) -> Iterator[Batch]:
                keys = loader._keys
                worker, accumulate = keys._share
                keys._share = (Worker(0, worker.world_size, 0, worker.world_size), accumulate)
                return super()._batches(loader, *more)

        return Training(self, *arguments)


class NothingWrong(WrongClip):
    """DDP with the mutants' way of reducing, without a fault: the control."""

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        return DDPStrategy.wrap(self, module, optimizer, accumulate)
