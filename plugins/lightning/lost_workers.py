"""Have what Lightning calls on a strategy say that a worker was lost, where the engine speaks of sockets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

C = TypeVar("C", bound=type)

TRAINERS = (
    "setup",
    "barrier",
    "broadcast",
    "reduce",
    "all_gather",
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


def noticing_lost_workers(methods: tuple[str, ...]) -> Callable[[C], C]:
    """Decorate a strategy class of ours for Lightning: these methods raise `WorkerLostError` where one is lost."""

    def decorate(kind: C) -> C:
        for name in methods:
            setattr(kind, name, _noticing(getattr(kind, name)))
        return kind

    return decorate


def _noticing(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def noticing(self: Any, *args: Any, **options: Any) -> Any:
        if self._adapter is None:
            return method(self, *args, **options)
        with self._adapter.noticing_lost_workers():
            return method(self, *args, **options)

    return noticing
