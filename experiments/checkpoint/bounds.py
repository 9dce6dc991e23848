"""The size of the large state, and the bounds for saving and loading it."""

from __future__ import annotations

from math import ceil

WIDTH = 1024
PARAMETER_BYTES = 4 * WIDTH * WIDTH  # of the largest parameter, in float32
LAYER_BYTES = 3 * 4 * WIDTH * (WIDTH + 1)  # a layer with Adam: weight, bias, and two slots of each

SAVE_RATIO = 0.8
"""Smallest ratio of our throughput to raw PyTorch's, of a state of `JUDGED_MB` or more."""

JUDGED_MB = 200  # in a smaller save, the commit takes most of the time

SHARDING = ("fsdp", "deepspeed_zero_3")
"""Strategies that shard the whole state, so that `peak_ratio_bound` applies to them."""

_BUFFER_BYTES = 64 << 20  # read or written at a time


def layers_for(state_mb: float) -> int:
    """Return the number of layers whose state is at least `state_mb` MB (1e6 bytes)."""
    return ceil(state_mb * 1e6 / LAYER_BYTES)


def peak_ratio_bound(shard: int) -> float:
    """Return how many times its shard of the state, in bytes, a worker may hold at the peak of a save or a load.

    It is (shard + one parameter + 64 MiB of buffers) / shard.
    """
    return (shard + PARAMETER_BYTES + _BUFFER_BYTES) / shard
