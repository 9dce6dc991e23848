"""Tell users of a mean over tokens that it is not one over samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from ..structure import map_structure

_DEFAULT = -100  # what torch.nn.functional.cross_entropy ignores unless told otherwise


class IgnoredLabels:
    """Warns once where labels are ignored, and nobody said how much each sample counts.

    A loss is weighted by its number of samples. Where `loss_fn` is a mean over the positions that are not ignored, two
    workers, or two micro-batches, would weight positions of a short text more than those of a long one; one would not.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: Any) -> None:
        holders = [loss_fn, *model.modules()]
        told = (getattr(holder, "ignore_index", None) for holder in holders)
        self._indices = sorted({_DEFAULT, *(index for index in told if type(index) is int)})
        self._looked = False

    def look_at(self, micro_batches: Iterable[Any], stacklevel: int) -> None:
        """Look at the first batch; later calls do nothing."""
        if self._looked:
            return
        self._looked = True
        found: list[int] = []

        def look(leaf: Any) -> None:
            if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.int64, torch.int32):
                found.extend(index for index in self._indices if bool((leaf == index).any()))

        for micro_batch in micro_batches:
            map_structure(look, micro_batch)
        if found:
            warnings.warn(
                f"labels are {found[0]} in places, which a loss ignores: a mean over the others is not a mean over "
                "samples, and depends on the number of workers and on `accumulate`. Say how much a micro-batch counts: "
                f"batches(..., weight=lambda micro_batch: (labels of it != {found[0]}).sum())",
                stacklevel=stacklevel + 1,
            )
