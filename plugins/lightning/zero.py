"""The options of the Trainer's and Fabric's ZeRO strategies in Lightning's words, and in ours."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from ...adapters import OptionError

_COMPUTES_IN = {"32-true": "float32", "bf16-mixed": "bf16", "16-mixed": "fp16"}


def name_of(stage: int, offload: bool) -> str:
    """Return our strategy's name.

    Raises:
        OptionError: there is no such strategy.
    """
    if stage not in (1, 2, 3):
        raise OptionError(f"stage={stage!r} must be 1, 2 or 3")
    if offload and stage == 1:
        raise OptionError("offload=True needs stage 2 or 3")
    return f"deepspeed_zero_{stage}{'_offload' if offload else ''}"


def computes_in(precision: str) -> str:
    """Return our name for Lightning's `precision`.

    Raises:
        OptionError: the engine cannot train in it.
    """
    if precision not in _COMPUTES_IN:
        raise OptionError(
            f"precision={precision!r}: DeepSpeed trains float32 parameters here; use one of {', '.join(_COMPUTES_IN)}"
        )
    return _COMPUTES_IN[precision]


_given: weakref.WeakSet[Any] = weakref.WeakSet()


def give(optimizer: Any) -> None:
    """Note that DeepSpeed has this optimizer, which updates only this worker's shards from now on."""
    _given.add(optimizer)


def refuse_given(optimizers: Iterable[Any], advice: str) -> None:
    """Refuse an optimizer that DeepSpeed has had.

    Raises:
        OptionError: there is one; `advice` says what to do.
    """
    for optimizer in optimizers:
        if optimizer in _given:
            raise OptionError(
                f"this {type(optimizer).__name__} was in an earlier training by ZeRO, which left it with shards of "
                f"that training's parameters: {advice}"
            )
