"""Run something on all workers: if one fails, all raise, so that none waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..errors import CheckpointError
from ..strategy import Strategy

T = TypeVar("T")


def together(strategy: Strategy, act: Callable[[], T], failure: str) -> list[T]:
    """Run `act` on every worker, and return what it returned on each, in rank order.

    Raises:
        CheckpointError: it failed on a worker; raised on all workers, as `failure`, that worker's rank, and its reason.
    """
    caught: Exception | None = None
    result: T | None = None
    try:
        result = act()
    except Exception as error:
        caught = error
    outcomes = strategy.gather((None if caught is None else reason_of(caught), result))
    for rank, (reason, _) in enumerate(outcomes):
        if reason is not None:
            raise CheckpointError(f"{failure} (worker {rank}): {reason}") from caught
    return [result for _, result in outcomes]


def reason_of(error: Exception) -> str:
    """Return an error's message, with its type if it is not a `CheckpointError`."""
    return str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
