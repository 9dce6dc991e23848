"""How long a worker waits for the others inside of a step, where somebody watches it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

Note = Callable[[float, float], None]

_UNTIMED = contextlib.nullcontext()


class Waiting:
    """Tells of spans in which this worker waits for the others; nothing is timed until somebody watches.

    A span is what passes in a collective, and so has what the collective itself takes, too.
    """

    def __init__(self) -> None:
        self._note: Note | None = None
        self._inside = False

    def tell(self, note: Note) -> None:
        """Have `note(start, end)` called with each span, in seconds of `time.perf_counter`."""
        self._note = note

    def __call__(self) -> contextlib.AbstractContextManager[None]:
        """Time a block, of which a part may be timed as well: once, together."""
        return _UNTIMED if self._note is None or self._inside else self._timed()

    def since(self, start: float) -> None:
        """Tell of a span that began at `start` and ends now."""
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
