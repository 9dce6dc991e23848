"""Where a training run stands, in terms that know no world size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .errors import OptionError


@dataclass(frozen=True, order=True)
class Progress:
    """How much has been consumed: `epoch` whole epochs, and `step` global batches of the next one.

    It counts what the training program consumed, never what a data loader fetched ahead, and the end of an epoch is
    always (epoch + 1, 0). Passed to `Training.batches(start=...)`, it names the first step still to be done.

    loop: how many calls of `Training.batches` came before the one that this is a position of; 0 in most programs. The
        position of a later call is the further one.
    global_batch_size: how many samples a step of it has; 0 where that is not known. It is no part of where it is, but
        `step` means nothing with another one.
    """

    loop: int = field(default=0, kw_only=True)
    epoch: int = 0
    step: int = 0
    global_batch_size: int = field(default=0, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        if min(self.loop, self.epoch, self.step) < 0:
            raise OptionError(f"progress counts from 0, but {self} was given")

    def as_json(self) -> dict[str, int]:
        """Return it as files have it, and `Progress(**...)` takes it, without what says nothing."""
        told = asdict(self)
        if not self.loop:
            del told["loop"]
        if not (self.step and self.global_batch_size):
            del told["global_batch_size"]
        return told

    def __repr__(self) -> str:
        loop = f", loop={self.loop}" if self.loop else ""
        return f"Progress(epoch={self.epoch}, step={self.step}{loop})"
