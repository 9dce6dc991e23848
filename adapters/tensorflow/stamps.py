"""Times inside a compiled step: the graph reads its clock, and we convert the readings."""

from __future__ import annotations

import time
from collections.abc import Sequence
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

    def spans(self, stamps: tf.Tensor) -> list[tuple[float, float]]:
        """Return spans from (n, 2) stamps, clamped to the time since the start; this waits for the step."""
        read = stamps.numpy()
        now = time.perf_counter()
        found = []
        for span in read:
            begin, end = (min(max(float(at) - self._wall + self.start, self.start), now) for at in span)
            found.append((begin, end))
        return found
