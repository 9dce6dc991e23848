"""Time the two sides of a comparison in pairs.

Both sides have their own copy of the model and see the same batches. The order within a pair is random, the same on all
workers, so that drift of the machine and side effects of one side on the other (caches, a slow worker) cancel out.
Python's garbage collector stays on: the objects that a step leaves behind are part of its cost.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from ...adapters import Batch
from ..progress import tell

BATCHES = 8  # trained on in turn
_WARM_UP = 20  # pairs: DDP rebuilds its buckets after the first step, Horovod fills its cache of responses


def time_pairs(
    sides: Mapping[str, Callable[[Batch], None]], batches: Sequence[Batch], pairs: int
) -> dict[str, list[float]]:
    """Return the seconds that each side's step of each pair took on this worker, by the sides' names."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    draw = random.Random(0)
    for pair in range(_WARM_UP + pairs):
        batch = batches[pair % len(batches)]
        for name in draw.sample(sorted(sides), k=len(sides)):
            step = sides[name]
            started = time.perf_counter()
            step(batch)
            seconds[name].append(time.perf_counter() - started)
        if pair % 50 == 0:
            tell(f"pair {pair} of {_WARM_UP + pairs}")
    return {name: taken[_WARM_UP:] for name, taken in seconds.items()}
