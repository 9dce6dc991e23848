"""The elementwise optimizers: those that may update a shard of a parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..errors import OptionError

ELEMENTWISE = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)


def refuse_unless_elementwise(optimizer: torch.optim.Optimizer, strategy_name: str, also: Sequence[str] = ()) -> None:
    """Refuse an optimizer that needs whole tensors (Adafactor, Muon, LBFGS), or is unknown.

    `also` names further classes that the engine brings.

    Raises:
        OptionError: the optimizer is not known to be elementwise.
    """
    kind = type(optimizer)
    if (kind.__module__.startswith("torch.optim") and kind.__name__ in ELEMENTWISE) or kind.__name__ in also:
        return
    raise OptionError(
        f"strategy {strategy_name!r} has each worker update a shard of each parameter, but {kind.__name__} is not "
        f"known to be elementwise: use one of {', '.join((*ELEMENTWISE, *also))}, or strategy 'ddp', which keeps "
        "parameters whole"
    )
