"""Selective checkpointing: the results of some operators are kept, and everything else is recomputed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import checkpoint

from ....adapters.errors import OptionError
from .arguments import take_tensors

_EXPENSIVE = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::convolution",
        "aten::_scaled_dot_product_attention_math",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
    }
)
"""Matrix products, convolutions and attention, as PyTorch's dispatcher names them below autograd."""


class Keep:
    """The operators whose results are kept.

    Args:
        operators: `True` for matrix products, convolutions and attention; or a list of operators, such as
            `torch.ops.aten.mm`, or of their names, such as "aten::mm".

    Raises:
        OptionError: one of them is no operator.
    """

    def __init__(self, operators: bool | Sequence[Any]) -> None:
        if operators is True:
            self._names = _EXPENSIVE
        else:
            self._names = frozenset(_name_of(operator) for operator in operators or ())

    def contexts(self) -> Any:
        """Return the contexts of a forward pass and its recomputation."""
        return checkpoint.create_selective_checkpoint_contexts(self.policy)  # type: ignore[no-untyped-call]

    def watching(self, see: Callable[[list[torch.Tensor]], None]) -> Any:
        """Return a context that keeps nothing, and calls `see` after each operator with what would be kept of it."""

        def policy(ctx: Any, op: Any, *_: Any, **__: Any) -> checkpoint.CheckpointPolicy:
            kept = self.policy(ctx, op) is checkpoint.CheckpointPolicy.MUST_SAVE
            see(take_tensors(ctx.op_output)[0] if kept else [])
            return checkpoint.CheckpointPolicy.PREFER_RECOMPUTE

        watched, _ = checkpoint.create_selective_checkpoint_contexts(policy)  # type: ignore[no-untyped-call]
        return watched

    def policy(self, ctx: Any, op: Any, *_: Any, **__: Any) -> checkpoint.CheckpointPolicy:
        """Return what to do with an operator's result, for `torch.utils.checkpoint`."""
        name = op.name().partition(".")[0]  # without the overload
        return (
            checkpoint.CheckpointPolicy.MUST_SAVE
            if name in self._names
            else checkpoint.CheckpointPolicy.PREFER_RECOMPUTE
        )


def _name_of(operator: Any) -> str:
    namespace, name, *_ = [*str(operator).replace("::", ".").split("."), ""]
    if not hasattr(getattr(torch.ops, namespace), name):
        raise OptionError(
            f"operators has {operator!r}, which is no operator of PyTorch's dispatcher: give ones such as "
            "torch.ops.aten.mm, or their names such as 'aten::mm', or True"
        )
    return f"{namespace}::{name}"
