"""Models that workers other than rank 0 built on the meta device: without memory, as rank 0's values replace theirs."""

from __future__ import annotations

import itertools

import torch

from ..errors import OptionError
from ..worker import Worker


def allocate(model: torch.nn.Module, device: torch.device, worker: Worker) -> None:
    """Give parameters and buffers that are on the meta device memory on `device`; their values are arbitrary.

    They stay the same objects, so that the optimizer and tied modules keep them.

    Raises:
        OptionError: there is one on rank 0, whose values all workers get.
    """
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if not tensor.is_meta:
            continue
        if worker.is_main:
            raise OptionError(
                f"{name!r} is on the meta device on worker 0, whose values all workers get: build the model on the CPU "
                "there. The other workers may build theirs on the meta device."
            )
        with torch.no_grad():
            values = torch.empty_like(tensor, device=device)
            if isinstance(tensor, torch.nn.Parameter):
                values = torch.nn.Parameter(values, requires_grad=tensor.requires_grad)
        values.__dict__.update(tensor.__dict__)
        torch.utils.swap_tensors(tensor, values)  # type: ignore[no-untyped-call]
