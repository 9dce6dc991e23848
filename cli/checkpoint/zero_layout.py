"""Which elements of which parameters ZeRO gives to each worker, in which order, at its default settings.

Read from DeepSpeed 0.19.8: `DeepSpeedZeroOptimizer.__init__` for stages 1 and 2, `DeepSpeedZeroOptimizer_Stage3` and
`partition_parameters` for stage 3. Sizes are numbers of elements, of a group's trained parameters by name, in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_ALIGNMENT = 2  # elements: at stages 1 and 2 a group's size is a multiple of it for each worker


@dataclass(frozen=True)
class Fragment:
    """A range of a flattened parameter, [start, start + numel), and where it begins in a worker's partition."""

    name: str
    start: int
    numel: int
    offset: int


@dataclass(frozen=True)
class Partition:
    """A worker's part of a group: its fragments, and its size, of which the last `padding` elements are unused."""

    fragments: tuple[Fragment, ...]
    size: int
    padding: int


def joined(sizes: Mapping[str, int], rank: int, workers: int) -> Partition:
    """Return a worker's part at stages 1 and 2: parameters end to end, cut into equal parts."""
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
    """Return a worker's part at stage 3: of each parameter an equal part, the last ones padded."""
    fragments: list[Fragment] = []
    offset = 0
    for name, numel in sizes.items():
        share = share_of(numel, workers)
        start = min(rank * share, numel)
        fragments.append(Fragment(name, start, min(share, numel - start), offset))
        offset += share
    return Partition(tuple(fragments), offset, 0)


def share_of(numel: int, workers: int) -> int:
    """Return what each worker holds of a parameter at stage 3, padding included."""
    return -(-numel // workers)


def sub_groups(sizes: Mapping[str, int], workers: int, limit: int) -> list[dict[str, int]]:
    """Return a group at stage 3 in the parts that are updated one by one; each ends where it reaches `limit`."""
    parts: list[dict[str, int]] = []
    part: dict[str, int] = {}
    held = 0
    for name, numel in sizes.items():
        part[name] = numel
        held += share_of(numel, workers)
        if held >= limit:
            parts.append(part)
            part, held = {}, 0
    return [*parts, part] if part else parts
