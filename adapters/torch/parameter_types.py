"""Refuse parameters that an engine does not train, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ..errors import OptionError

if TYPE_CHECKING:
    from .strategy import TorchStrategy


def refuse_complex(module: torch.nn.Module, strategy: TorchStrategy) -> None:
    """Refuse complex parameters on engines that accept them, but do not train them.

    Raises:
        OptionError: one requires a gradient, and `strategy.capabilities.dtypes` lacks its type.
    """
    for name, parameter in module.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.requires_grad and parameter.is_complex() and dtype not in strategy.capabilities.dtypes:
            raise OptionError(
                f"parameter {name!r} is {dtype}, which strategy {strategy.name!r} does not train: keep real numbers "
                "and make them complex in forward (torch.view_as_complex), or use 'ddp' without a comm_hook"
            )


def refuse_scalars(module: torch.nn.Module, strategy_name: str) -> None:
    """Refuse parameters without dimensions, which an engine cannot shard by rows.

    Raises:
        OptionError: the module has one.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() == 0:
            raise scalar_error(name, strategy_name)


def scalar_error(name: str, strategy_name: str) -> OptionError:
    """Return the error that refuses a scalar parameter."""
    return OptionError(
        f"parameter {name!r} is a scalar, which strategy {strategy_name!r} cannot shard: give it the shape (1,)"
    )


def refuse_empty(
    module: torch.nn.Module, strategy_name: str, numel: Callable[[torch.Tensor], int] = torch.Tensor.numel
) -> None:
    """Refuse parameters without elements, which an engine cannot shard.

    Args:
        numel: returns the number of elements of a parameter, which may be partitioned already.

    Raises:
        OptionError: the module has one.
    """
    for name, parameter in module.named_parameters():
        if numel(parameter) == 0:
            raise OptionError(
                f"parameter {name!r} has no elements, and strategy {strategy_name!r} cannot shard it: leave it out of "
                "the model, or register it as a buffer"
            )


def refuse_sparse_gradients(parameters: Iterable[tuple[str, torch.Tensor]], strategy_name: str) -> list[list[Any]]:
    """Check the first gradient of each parameter, by its name, before the engine gets it.

    Backward raises an `OptionError` if it is sparse; only a backward pass shows that.

    Returns:
        For each parameter a list with its hook's handle, empty once the hook has run. The engine removes the rest when
        it is released.
    """
    looking: list[list[Any]] = []
    for name, parameter in parameters:
        handles: list[Any] = []
        look = partial(_look_at_first, name, strategy_name, handles)
        handles.append(parameter.register_hook(look))  # type: ignore[no-untyped-call]
        looking.append(handles)
    return looking


def stop_looking(looking: list[list[Any]]) -> None:
    """Remove the hooks of `refuse_sparse_gradients`."""
    for handles in looking:
        while handles:
            handles.pop().remove()


def _look_at_first(name: str, strategy_name: str, handles: list[Any], gradient: torch.Tensor | None) -> None:
    if gradient is None:  # a function of the graph had none
        return
    while handles:
        handles.pop().remove()
    if gradient.is_sparse:
        raise OptionError(
            f"parameter {name!r} has a sparse gradient, which strategy {strategy_name!r} cannot reduce: leave "
            "sparse=True out (for example of nn.Embedding), or use strategy 'ddp' or 'horovod'"
        )
