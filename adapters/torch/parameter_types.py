"""Types of parameters that an engine does not train, refused by name before it is handed the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..errors import OptionError

if TYPE_CHECKING:
    from .strategy import TorchStrategy


def refuse_complex(module: torch.nn.Module, strategy: TorchStrategy) -> None:
    """Look for complex parameters, which some engines take and never train.

    Raises:
        OptionError: one is to be trained, and `strategy.capabilities.dtypes` has not its type.
    """
    for name, parameter in module.named_parameters():
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.requires_grad and parameter.is_complex() and dtype not in strategy.capabilities.dtypes:
            raise OptionError(
                f"parameter {name!r} is {dtype}, which strategy {strategy.name!r} does not train: keep real numbers "
                "and make them complex in forward (torch.view_as_complex), or take 'ddp' without a comm_hook"
            )
