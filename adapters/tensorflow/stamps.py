"""Times inside of a compiled step: the graph reads the clock, and we translate what it read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf


def stamp_after(values: Sequence[Any]) -> tf.Tensor:
    """Return the time when all of these are computed: (), float64, seconds of the graph's clock."""
    with tf.control_dependencies(tf.nest.flatten(values, expand_composites=True)):
        return tf.timestamp()


class Clock:
    """Translates stamps of a step that runs from now on to seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self._wall, self.start = time.time(), time.perf_counter()

    def spans(self, stamps: tf.Tensor) -> list[tuple[float, float]]:
        """Return spans from (n, 2) stamps, within what has passed since; they wait for the step."""
        read = stamps.numpy()
        now = time.perf_counter()
        found = []
        for span in read:
            begin, end = (min(max(float(at) - self._wall + self.start, self.start), now) for at in span)
            found.append((begin, end))
        return found
