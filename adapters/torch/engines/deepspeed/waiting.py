"""Time DeepSpeed's collectives: there is no hook, but one object per job has all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...waiting import Waiting
from .compat import collectives_of, communication

_KEPT = "_farandole_collectives"


class Collectives:
    """Times the collectives for one engine at a time, whose step it is.

    waiting: that engine's; `None` while no engine is watched.
    """

    def __init__(self, backend: Any) -> None:
        self.waiting: Waiting | None = None
        for name, collective in collectives_of(backend).items():
            setattr(backend, name, self._timed(collective))

    def _timed(self, collective: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self.waiting is None:
                return collective(*args, **kwargs)
            with self.waiting():
                work = collective(*args, **kwargs)
            return work if work is None else _Work(work, self.waiting)

        return timed


class _Work:
    """A running collective; waiting for it is timed."""

    def __init__(self, work: Any, waiting: Waiting) -> None:
        self._work = work
        self._waiting = waiting

    def wait(self, *args: Any) -> Any:
        with self._waiting():
            return self._work.wait(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def find_collectives() -> Collectives:
    """Return the timer for the collectives of DeepSpeed's job; it ends with that job."""
    backend = communication().backend
    if not hasattr(backend, _KEPT):
        setattr(backend, _KEPT, Collectives(backend))
    kept: Collectives = getattr(backend, _KEPT)
    return kept
