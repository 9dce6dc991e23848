"""A third party's smallest strategy: a process group, and an all-reduce for each gradient."""

from __future__ import annotations

import torch
import torch.distributed as dist

from farandole.adapters import Capabilities
from farandole.adapters.torch.engine import Engine
from farandole.adapters.torch.process_group import ProcessGroupStrategy


class ToyStrategy(ProcessGroupStrategy):
    capabilities = Capabilities("torch")

    def wrap(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, accumulate: int = 1) -> Engine:
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.detach(), src=0)
        return ToyEngine(module, optimizer)


class ToyEngine(Engine):
    def reduce_gradients(self) -> None:
        for parameter in self.parameters:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            used = torch.tensor(float(parameter.grad is not None))
            dist.all_reduce(gradient)
            dist.all_reduce(used)
            parameter.grad = gradient / dist.get_world_size() if used > 0 else None
