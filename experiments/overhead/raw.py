"""The raw side of `overhead`: a training step as one writes it by hand on each engine, with the options ours has.

It uses nothing of Farandole's, and expects the engine to be initialized. The loss is not reduced over the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from .models import LEARNING_RATE, MOMENTUM

Step = Callable[[Tensor, Tensor], None]


def local(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """Plain PyTorch."""
    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def ddp(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """DistributedDataParallel, as in https://docs.pytorch.org/tutorials/intermediate/ddp_tutorial.html."""
    replica = DistributedDataParallel(model, **options)
    optimizer = SGD(replica.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = mse_loss(replica(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def horovod(model: nn.Module, options: Mapping[str, Any]) -> Step:
    """Horovod, as in https://horovod.readthedocs.io/en/stable/pytorch.html."""
    import horovod.torch as hvd

    optimizer = SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    hvd.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = hvd.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(), **options)

    def step(inputs: Tensor, targets: Tensor) -> None:
        optimizer.zero_grad()
        loss = mse_loss(model(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


RAW: dict[str, Callable[[nn.Module, Mapping[str, Any]], Step]] = {"local": local, "ddp": ddp, "horovod": horovod}
