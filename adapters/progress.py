"""The position of a training run, independent of the world size."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from .errors import OptionError


@dataclass(frozen=True, order=True)
class Progress:
    """How much has been consumed: `epoch` whole epochs, and `step` global batches of the next one.

    It counts what the training program consumed, never what a data loader prefetched. The end of an epoch is always
    (epoch + 1, 0). Passed to `Training.batches(start=...)`, it names the next step.

    loop: how many calls of `Training.batches` came before the current one; 0 in most programs. A position in a later
        call is further.
    global_batch_size: the samples of a step; 0 if unknown. It is not compared, but `step` has a meaning only with it.
    """

    loop: int = field(default=0, kw_only=True)
    epoch: int = 0
    step: int = 0
    global_batch_size: int = field(default=0, kw_only=True, compare=False)

    def __post_init__(self) -> None:
        if min(self.loop, self.epoch, self.step) < 0:
            raise OptionError(f"progress counts from 0, but {self} was given")

    def as_json(self) -> dict[str, int]:
        """Return it for JSON files and `Progress(**...)`, without defaults."""
        fields = asdict(self)
        if not self.loop:
            del fields["loop"]
        if not (self.step and self.global_batch_size):
            del fields["global_batch_size"]
        return fields

    def __repr__(self) -> str:
        loop = f", loop={self.loop}" if self.loop else ""
        return f"Progress(epoch={self.epoch}, step={self.step}{loop})"
