"""Measure how long a worker waits for the others inside a step, if a callback watches it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Note = Callable[[float, float], None]

_UNTIMED = contextlib.nullcontext()


class Waiting:
    """Reports spans in which this worker waits for the others; nothing is timed unless a callback watches.

    A span is the time in a collective, including the time of the collective itself.
    """

    def __init__(self) -> None:
        self._note: Note | None = None
        self._inside = False

    def tell(self, note: Note) -> None:
        """Call `note(start, end)` with each span from now on, in seconds of `time.perf_counter`."""
        self._note = note

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """Time a block; a timed block inside it is not counted again."""
        return _UNTIMED if self._note is None or self._inside else self._timed()

    def since(self, start: float) -> None:
        """Report a span that began at `start` and ends now."""
        if self._note is not None:
            self._note(start, time.perf_counter())

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        start, self._inside = time.perf_counter(), True
        try:
            yield
        finally:
            self._inside = False
            self.since(start)
