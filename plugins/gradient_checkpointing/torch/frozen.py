"""Frozen parameters of layers that an engine gathers for each pass, as ZeRO's stage 3 does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .arguments import put_tensors, take_tensors


class FrozenDetached(torch.overrides.TorchFunctionMode):
    """Computes with tensors of their own in the place of frozen parameters.

    An engine that gathers parameters for each layer replaces their data afterwards. Autograd keeps a frozen parameter
    itself, of which nothing is left by then, but of a trained one a tensor with the gathered data.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("__get__", "__set__"):  # of attributes
            return func(*args, **(kwargs or {}))
        tensors, places = take_tensors((args, dict(kwargs or {})))
        args, kwargs = put_tensors([_detached(tensor) for tensor in tensors], places)
        return func(*args, **kwargs)


def _detached(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach() if isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad else tensor
