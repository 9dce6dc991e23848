"""Where a training run stands, in terms that know no world size."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import OptionError


@dataclass(frozen=True, order=True)
class Progress:
    """How much has been consumed: `epoch` whole epochs, and `step` global batches of the next one.

    It counts what the training program consumed, never what a data loader fetched ahead, and the end of an epoch is
    always (epoch + 1, 0). Passed to `Training.batches(start=...)`, it names the first step still to be done.
    """

    epoch: int = 0
    step: int = 0

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.step < 0:
            raise OptionError(f"progress counts from 0, but epoch={self.epoch} and step={self.step} were given")
