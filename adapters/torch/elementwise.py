"""Which optimizers update each element by itself, so that they may be given a part of a parameter."""

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
    """Refuse an optimizer that looks at whole tensors (Adafactor, Muon, LBFGS), or of which it is not known.

    `also` names further classes that the engine brings.

    Raises:
        OptionError: a shard of a parameter would be updated otherwise than the whole.
    """
    kind = type(optimizer)
    if (kind.__module__.startswith("torch.optim") and kind.__name__ in ELEMENTWISE) or kind.__name__ in also:
        return
    raise OptionError(
        f"strategy {strategy_name!r} has each worker update a part of each parameter, where {kind.__name__} is not "
        f"known to do as on the whole: take one of {', '.join((*ELEMENTWISE, *also))}, or strategy 'ddp', which keeps "
        "parameters whole"
    )
