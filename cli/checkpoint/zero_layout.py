"""ZeRO's default layout: which elements of which parameters each worker holds, and in which order.

Read from DeepSpeed 0.19.8: `DeepSpeedZeroOptimizer.__init__` for stages 1 and 2, `DeepSpeedZeroOptimizer_Stage3` and
`partition_parameters` for stage 3. Sizes are numbers of elements: a group's trained parameters by name, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ALIGNMENT = 2  # elements: at stages 1 and 2 each worker's partition is a multiple of it


@dataclass(frozen=True)
class Fragment:
    """A range of a flattened parameter, [start, start + numel), and where it begins in a worker's partition."""

    name: str
    start: int
    numel: int
    offset: int


@dataclass(frozen=True)
class Partition:
    """A worker's part of a group: its fragments, and its size, whose last `padding` elements are unused."""

    fragments: tuple[Fragment, ...]
    size: int
    padding: int


def joined(sizes: Mapping[str, int], rank: int, workers: int) -> Partition:
    """Return a worker's partition at stages 1 and 2: an equal slice of the parameters end to end."""
    total = sum(sizes.values())
    unit = _ALIGNMENT * workers
    size = -(-total // unit) * unit // workers
    begin, end = rank * size, (rank + 1) * size
    fragments: list[Fragment] = []
    position = 0
    for name, numel in sizes.items():
        first, last = max(position, begin), min(position + numel, end)
        if first < last:
            fragments.append(Fragment(name, first - position, last - first, first - begin))
        position += numel
    return Partition(tuple(fragments), size, size - max(0, min(total, end) - begin))


def sharded(sizes: Mapping[str, int], rank: int, workers: int) -> Partition:
    """Return a worker's partition at stage 3: an equal shard of each parameter, the last ones padded."""
    fragments: list[Fragment] = []
    offset = 0
    for name, numel in sizes.items():
        shard = shard_size(numel, workers)
        start = min(rank * shard, numel)
        fragments.append(Fragment(name, start, min(shard, numel - start), offset))
        offset += shard
    return Partition(tuple(fragments), offset, 0)


def shard_size(numel: int, workers: int) -> int:
    """Return the elements of a parameter's shard on each worker at stage 3, padding included."""
    return -(-numel // workers)


def sub_groups(sizes: Mapping[str, int], workers: int, limit: int) -> list[dict[str, int]]:
    """Split a group at stage 3 into the sub-groups that are updated one by one; each ends when it reaches `limit`."""
    parts: list[dict[str, int]] = []
    part: dict[str, int] = {}
    held = 0
    for name, numel in sizes.items():
        part[name] = numel
        held += shard_size(numel, workers)
        if held >= limit:
            parts.append(part)
            part, held = {}, 0
    return [*parts, part] if part else parts
