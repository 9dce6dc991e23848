"""Warn users of a mean over tokens that it is not a mean over samples."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch

from ..structure import map_structure

_DEFAULT = -100  # the default of torch.nn.functional.cross_entropy


class IgnoredLabels:
    """Warns once if labels are ignored, and `batches` has no `weight`.

    By default a loss is weighted by its number of samples. If `loss_fn` is a mean over the labels that are not ignored,
    several workers or micro-batches give labels of short texts more weight than one would.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: Any) -> None:
        holders = [loss_fn, *model.modules()]
        indices = (getattr(holder, "ignore_index", None) for holder in holders)
        self._indices = sorted({_DEFAULT, *(index for index in indices if type(index) is int)})
        self._looked = False

    def look_at(self, micro_batches: Iterable[Any], stacklevel: int) -> None:
        """Check the first batch; later calls do nothing."""
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
                f"some labels are {found[0]}, which a loss ignores: a mean over the other labels is not a mean over "
                "samples, and depends on the number of workers and on `accumulate`. Give each micro-batch's weight: "
                f"batches(..., weight=lambda micro_batch: (its labels != {found[0]}).sum())",
                stacklevel=stacklevel + 1,
            )
