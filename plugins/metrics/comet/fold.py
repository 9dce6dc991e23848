"""From a worker's records to the values that are sent: no step twice, and no more than Comet takes.

Comet takes 12,000 values a minute, and thins out a metric of which it has 15,000
(https://www.comet.com/docs/v2/guides/experiment-management/limits-and-performance). Where more is measured, several
records become one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..records import Record
from .client import Value
from .names import How, Mode, Part, parts

A_MINUTE = 12_000
MOST_OF_A_NAME = 15_000
MOST_NAMES = 1_000  # of one worker
_FREE, _STAGE = 2_000, 1_000


class Allowance:
    """How many values may go: never more than `share` in a minute.

    share: values in a minute. A quarter of them may go at once.
    """

    def __init__(self, share: float, left: float | None = None, at: float | None = None) -> None:
        self.most = share / 4
        self._rate = (share - self.most) / 60
        self.left = self.most if left is None else left
        self.at = at

    def wait(self, wanted: int, now: float) -> float:
        """Return in how many seconds so many may go. More than `most` may go when all is there."""
        if self.at is not None:
            # A clock that is set back gives nothing, one that is set forward a minute's share.
            self.left = min(self.most, self.left + min(max(now - self.at, 0.0), 60.0) * self._rate)
        self.at = now
        return max(0.0, min(wanted, self.most) - self.left) / self._rate

    def take(self, count: int) -> None:
        """Note that so many went."""
        self.left -= count


@dataclass
class _Metric:
    """The values of one name: how many were sent, and those that wait to become one."""

    how: How
    sent: int = 0
    held: int = 0
    value: float = 0.0  # the sum, of a mean
    weight: float = 0.0
    step: int = 0
    epoch: int = 0
    time: int = 0

    def add(self, part: Part, record: Record) -> None:
        """Take in a number."""
        if self.held == 0:
            self.value, self.weight = 0.0, 0.0
        if self.how == "mean":
            self.value += part.value * part.weight
        elif self.held == 0 or self.how == "last":
            self.value = part.value
        else:
            self.value = max(self.value, part.value) if self.how == "max" else min(self.value, part.value)
        self.weight += part.weight
        self.held += 1
        self.step, self.epoch, self.time = record.step, record.epoch, int(record.time * 1000)

    @property
    def due(self) -> bool:
        """Whether enough are held to become one.

        After 2,000 values two become one, and after each 1,000 more twice as many, so that 15,000 values last for over
        16 million records.
        """
        return self.held > 0 and self.sent < MOST_OF_A_NAME and self.held >= _stride(self.sent)

    def out(self, name: str) -> Value:
        """Return the one value, and hold nothing."""
        value = self.value / self.weight if self.how == "mean" and self.weight else self.value
        self.held = 0
        self.sent += 1
        return Value(name, value, self.step, self.epoch, self.time)


def _stride(sent: int) -> int:
    return 1 if sent < _FREE else 2 ** ((sent - _FREE + _STAGE) // _STAGE)


@dataclass
class Fold:
    """What the values of the next records depend on. The same records give the same values, also in another process.

    attempt: of the latest record.
    done: by kind of record, the last step that was taken in.
    before: the same, at the end of the earlier attempts: steps up to there are done again, and not sent again.
    left, at: of the allowance by the records' own time.
    widened, crowded: whether several records became one; whether there were more names than `MOST_NAMES`.
    """

    attempt: int = 0
    done: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, _Metric] = field(default_factory=dict)
    left: float | None = None
    at: float | None = None
    widened: bool = False
    crowded: bool = False

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Fold:
        """Return it as it was when `state` was taken."""
        metrics = {name: _Metric(**each) for name, each in state.get("metrics", {}).items()}
        return cls(**{**state, "metrics": metrics})

    def state(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def feed(self, record: Record, mode: Mode, share: float) -> list[Value]:
        """Take in a record, and return the values that go now."""
        if record.attempt != self.attempt:
            self.attempt, self.before = record.attempt, dict(self.done)
        if record.step <= self.before.get(record.kind, -1):
            return []
        self.done[record.kind] = max(record.step, self.done.get(record.kind, -1))
        for part in parts(record, mode):
            metric = self.metrics.get(part.name)
            if metric is None:
                if len(self.metrics) >= MOST_NAMES:
                    self.crowded = True
                    continue
                metric = self.metrics[part.name] = _Metric(part.how)
            metric.add(part, record)
        due = [name for name, metric in self.metrics.items() if metric.due]
        allowance = Allowance(share, self.left, self.at)
        wait = allowance.wait(len(due), record.time)
        self.left, self.at = allowance.left, allowance.at
        if wait > 0:
            return []
        self.left -= len(due)
        self.widened |= any(self.metrics[name].held > 1 for name in due)
        return [self.metrics[name].out(name) for name in due]

    def flush(self) -> list[Value]:
        """Return what is held, at the end."""
        held = [name for name, metric in self.metrics.items() if metric.held and metric.sent < MOST_OF_A_NAME]
        return [self.metrics[name].out(name) for name in held]
