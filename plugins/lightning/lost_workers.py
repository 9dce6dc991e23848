"""Make a strategy's methods raise `WorkerLostError` where the engine would speak of sockets.

And let them wait for no one while this worker alone handles an exception.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ...adapters import WorkerLostError

C = TypeVar("C", bound=type)

TRAINERS = (
    "setup",
    "barrier",
    "broadcast",
    "reduce",
    "reduce_boolean_decision",
    "all_gather",
    "lightning_module_state_dict",
    "optimizer_state",
    "backward",
    "optimizer_step",
    "training_step",
    "validation_step",
    "test_step",
    "predict_step",
    "save_checkpoint",
    "load_checkpoint",
)
FABRICS = (
    "setup_module",
    "barrier",
    "broadcast",
    "all_reduce",
    "all_gather",
    "backward",
    "optimizer_step",
    "save_checkpoint",
    "load_checkpoint",
)


_ALONE: dict[str, Callable[..., Any]] = {
    "barrier": lambda strategy, *arguments, **options: None,
    "broadcast": lambda strategy, obj, *arguments, **options: obj,
    "reduce": lambda strategy, tensor, *arguments, **options: tensor,
    "reduce_boolean_decision": lambda strategy, decision, *arguments, **options: decision,
}
"""What these methods do on a worker that handles an exception alone: they wait for no one."""

_ALONE_WITH_A_SHARD: dict[str, Callable[..., Any]] = {
    "lightning_module_state_dict": lambda strategy: {},
    "optimizer_state": lambda strategy, optimizer: {},
    "save_checkpoint": lambda strategy, checkpoint, filepath, **options: strategy.say_lost(filepath),
}
"""The same for a strategy that shards the state: nothing can be saved."""


def noticing_lost_workers(methods: tuple[str, ...]) -> Callable[[C], C]:
    """Decorate our strategy class for Lightning: these methods raise `WorkerLostError` if a worker is lost."""

    def decorate(kind: C) -> C:
        for name in methods:
            setattr(kind, name, _noticing(getattr(kind, name)))
        return kind

    return decorate


def _noticing(method: Callable[..., Any]) -> Callable[..., Any]:
    alone, with_a_shard = (known.get(method.__name__) for known in (_ALONE, _ALONE_WITH_A_SHARD))

    @functools.wraps(method)
    def noticing(self: Any, *args: Any, **options: Any) -> Any:
        if self._adapter is None:
            return method(self, *args, **options)
        if (alone or with_a_shard) and self.is_alone():
            instead = alone or (with_a_shard if self.has_a_shard() else None) or method
            return instead(self, *args, **options)
        try:
            with self._adapter.noticing_lost_workers():
                return method(self, *args, **options)
        except WorkerLostError as lost:
            self.say_who_failed(lost)
            raise

    return noticing
