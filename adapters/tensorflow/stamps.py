"""Times inside a compiled step: the graph reads its clock, and we convert the readings."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf


def stamp_after(values: Sequence[Any]) -> tf.Tensor:
    """Return the time at which all `values` are computed: (), float64, seconds of the graph's clock."""
    with tf.control_dependencies(tf.nest.flatten(values, expand_composites=True)):
        return tf.timestamp()


class Clock:
    """Converts the stamps of a step that starts now to seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self._wall, self.start = time.time(), time.perf_counter()

    def read(self, *stamps: float, since: float | None = None) -> Iterator[float]:
        """Yield stamps in their order, clamped to the time between the last one (first: `since`, or the start) and now.

        Reading the numbers from the graph waits for the step.
        """
        latest, now = self.start if since is None else since, time.perf_counter()
        for stamp in stamps:
            latest = min(max(float(stamp) - self._wall + self.start, latest), now)
            yield latest
