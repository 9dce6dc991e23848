"""The distance between two loss curves, as the contract measures it."""

from __future__ import annotations

from collections.abc import Sequence


def max_loss_diff(losses: Sequence[float], reference: Sequence[float]) -> float:
    """Return the largest |loss - reference| / max(1, |reference|) over all steps, NaN if one of them is.

    Raises:
        ValueError: the curves differ in length, or are empty.
    """
    if len(losses) != len(reference) or not losses:
        raise ValueError(f"cannot compare a curve of {len(losses)} steps with one of {len(reference)}")
    diffs = [abs(loss - expected) / max(1.0, abs(expected)) for loss, expected in zip(losses, reference, strict=True)]
    return next((diff for diff in diffs if diff != diff), max(diffs))
