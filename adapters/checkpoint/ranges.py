"""Split replicated tensors evenly, so that each worker writes as many bytes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate


def split_evenly(tensors: Sequence[tuple[int, int]], world_size: int, whole: int = 0) -> list[list[int]]:
    """Lay tensors end to end, split the line into `world_size` slices of equal bytes, and return where.

    Args:
        tensors: number of elements, and bytes of an element, of each.
        whole: bytes at the beginning of the line that all go to worker 0.

    Returns:
        For each tensor, world_size + 1 indices: worker r has its elements from the r-th to before the next.
    """
    total = sum(numel * itemsize for numel, itemsize in tensors)
    ends = [0, *(max(whole, total * rank // world_size) for rank in range(1, world_size)), total]
    begins = accumulate((numel * itemsize for numel, itemsize in tensors), initial=0)
    return [
        [min(max(-((begin - end) // itemsize), 0), numel) for end in ends]
        for (numel, itemsize), begin in zip(tensors, begins, strict=False)
    ]
