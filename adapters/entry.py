"""Which strategy is open in this process, how many were entered before, and what they left to close later.

An engine has one job, one default process group and one environment in a process, so one strategy is open at a time.
All workers enter the same strategies in the same order: so the count can keep apart the addresses of successive
strategies.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .errors import StrategyStateError

if TYPE_CHECKING:
    from .strategy import Strategy

_open: Strategy | None = None
_give_way: Callable[[], None] | None = None
_generation = 0
_unclosed: list[Callable[[], None]] = []


def begin(strategy: Strategy) -> None:
    """Note that `strategy` is entered, and close what an earlier, failed one left open.

    Raises:
        StrategyStateError: another one is open.
    """
    global _open, _generation
    if _open is not None and _open.worker == strategy.worker:
        give_way()
    if _open is not None:
        whose = "a Trainer or Fabric of this process keeps it" if _give_way else "leave its `with` block first"
        raise StrategyStateError(f"strategy {strategy.name!r} was entered while {_open.name!r} is open: {whose}")
    _generation += 1
    while _unclosed:
        _unclosed.pop(0)()
    _open = strategy


def end(strategy: Strategy) -> None:
    """Note that `strategy` was left."""
    global _open, _give_way
    if _open is strategy:
        _open = _give_way = None


def leave_for_another(leave: Callable[[], None]) -> None:
    """Have `leave()` called when another strategy is entered, instead of refusing it while this one is open."""
    global _give_way
    _give_way = leave


def give_way() -> None:
    """Leave the open strategy now if it was marked by `leave_for_another`; all workers call it."""
    if _give_way is not None:
        _give_way()


def generation() -> int:
    """Return how many strategies this process has begun to enter; the same on all workers."""
    return _generation


def close_later(close: Callable[[], None]) -> None:
    """Have `close()` called when the next strategy is entered.

    A strategy that failed must not wait, but closing may have to wait until the other workers have failed too.
    """
    _unclosed.append(close)


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set variables of the environment that an engine reads, and restore their old values afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
