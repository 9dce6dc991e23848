"""Time FSDP's collectives: it accepts replacements, which do the same here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule

from ...waiting import Waiting

# torch 2.13 renamed them, and warns about the old names.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def time_collectives(root: torch.nn.Module, waiting: Waiting) -> None:
    """Time the gathering of parameters and the reduction of gradients of all blocks below `root`.

    On CUDA the stream waits in them, not the host.
    """
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(_Timed(waiting, _all_gather))  # type: ignore[arg-type]
            module.set_custom_reduce_scatter(_Timed(waiting, _reduce_scatter))  # type: ignore[arg-type]


class _Timed:
    """FSDP's `Comm`: it allocates a collective's buffer, and runs the collective."""

    def __init__(self, waiting: Waiting, collective: Any) -> None:
        self._waiting = waiting
        self._collective = collective

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, **arguments: Any) -> Any:
        with self._waiting():
            return self._collective(output_tensor, input_tensor, **arguments)
