"""One file of records on its way to one experiment: each value is sent, and none twice.

The file itself is the queue: nothing is held in memory, and nothing is lost with a process. Beside it a small file says
up to which byte the server has answered, and, while a request is on its way, what it has. A process that is killed
between request and answer leaves one batch in doubt: whoever goes on asks the server which of its values arrived, and
sends the others.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..lock import RunLock
from ..records import Record, from_line
from .client import TIMEOUT, Busy, Denied, Experiment, Failed, Unreached, Unwanted, Value
from .fold import Allowance, Fold
from .names import Mode
from .run import Description

FOLDER = "comet"
"""The folder in a run's folder that has the small files."""

BATCH = 1_000  # values, as comet_ml's own batches
SETTLE = 5.0  # seconds until what the server took can be read there

Tell = Callable[[str], None]


@dataclass
class _State:
    """What the small file has.

    offset: bytes of the records' file that need no more sending.
    fold: the state there.
    sent: values that the server has.
    sending: the batch on its way, if there is one: up to which byte it goes, whether it is the last (then it also has
        what was held), what its values depended on, and from when on the server knows whether it arrived: a slow server
        may take it after the sender has ended.
    described: the attempt whose parameters the server has.
    """

    offset: int = 0
    fold: dict[str, Any] = field(default_factory=dict)
    sent: int = 0
    sending: dict[str, Any] | None = None
    described: int = -1


class Delivery:
    """Sends the records of a file; one process at a time may.

    Args:
        records: the file, which may grow, or come later.
        share: values in a minute that the run may send of this file.
        tell: takes a message to the user.
        pace: how many may be sent now; by default as many as `share` says.

    Raises:
        Held: another process sends them.
    """

    def __init__(self, records: Path, mode: Mode, share: float, tell: Tell, pace: Allowance | None = None) -> None:
        self._records, self._mode, self._share, self._tell = records, mode, share, tell
        folder = records.parent / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"{records.stem}.json"
        self._lock = RunLock(folder / f"{records.stem}.lock")
        self._state = _read(self._file)
        self._pace = pace or Allowance(share)
        self._fold, self._offset, self._partly = Fold(), 0, False
        self._values: list[Value] = []
        self._forget()

    @property
    def sent(self) -> int:
        """Values that the server has, of all attempts."""
        return self._state.sent

    def describe(self, experiment: Experiment, wanted: Description) -> None:
        """Have the experiment say this of the run, unless it says so of this attempt already."""
        if self._state.described < wanted.attempt:
            experiment.describe(wanted.parameters, wanted.tags, wanted.name)
            self._save(replace(self._state, described=wanted.attempt))

    def deliver(self, experiment: Experiment, last: bool = False) -> int:
        """Send what is there, at most a batch; return how many values it was.

        Args:
            last: send also what is held back to become one with what follows.

        Raises:
            Away, Busy: it has to be called again.
            Denied: it makes no sense to.
            OSError: a file cannot be read or written.
        """
        if self._state.sending is not None:
            return self._settle(experiment)
        self._read_on()
        values = self._values
        if last and len(values) < BATCH:
            values = [*values, *self._fold.flush()]
        if not values:
            return 0
        wait = self._pace.wait(len(values), time.monotonic())
        if wait > 0:
            self._forget()
            raise Busy(wait, "Comet takes 12,000 values a minute")
        self._pace.take(len(values))
        last = last and len(self._values) < BATCH
        self._note({"to": self._offset, "last": last, "mode": self._mode, "share": self._share}, TIMEOUT + SETTLE)
        return self._send(experiment, values)

    def close(self) -> None:
        """Let others send."""
        self._lock.release()

    def _settle(self, experiment: Experiment) -> int:
        """Send what did not arrive of the batch in doubt."""
        sending = self._state.sending
        assert sending is not None
        wait = sending["known"] - time.time()
        if 0 < wait <= TIMEOUT + SETTLE:  # else the clock was set
            raise Busy(wait, "what was sent last may still arrive")
        self._forget()
        for record, end in _lines(self._records, self._offset, sending["to"]):
            if record is not None:
                self._values += self._fold.feed(record, sending["mode"], sending["share"])
            self._offset = end
        values = self._values + (self._fold.flush() if sending["last"] else [])
        arrived = experiment.arrived(sorted({value.name for value in values}))
        missing = _missing(values, arrived)
        self._note(sending, TIMEOUT + SETTLE)
        return self._send(experiment, values, missing)

    def _send(self, experiment: Experiment, values: list[Value], missing: list[Value] | None = None) -> int:
        rest = values if missing is None else missing
        try:
            refused = self._send_part(experiment, rest)
        except (Busy, Denied, Unreached):
            if missing is None and not self._partly:  # nothing of it arrived
                self._save(replace(self._state, sending=None))
                self._forget()
            else:
                self._note(self._state.sending, 0.0)
            raise
        except Failed:
            self._note(self._state.sending, SETTLE)
            raise
        sent = len(values) - refused
        offset, fold = self._offset, self._fold.state()
        self._save(_State(offset, fold, self._state.sent + sent, None, self._state.described))
        self._forget()
        self._report(Fold.of(fold))
        return sent

    def _send_part(self, experiment: Experiment, values: Sequence[Value]) -> int:
        """Send values; return how many of them the server does not take at all."""
        if not values:
            return 0
        try:
            experiment.send(values)
        except Unwanted as reason:
            if len(values) == 1:
                self._tell(f"the server does not take {values[0].name!r}: {reason}. The run's folder has it")
                return 1
            self._partly = True
            middle = len(values) // 2
            return self._send_part(experiment, values[:middle]) + self._send_part(experiment, values[middle:])
        return 0

    def _read_on(self) -> None:
        if not self._records.exists():
            return
        for record, end in _lines(self._records, self._offset, None):
            if record is not None:
                self._values += self._fold.feed(record, self._mode, self._share)
            self._offset = end
            if len(self._values) >= BATCH:
                return

    def _forget(self) -> None:
        """Go back to what the small file says."""
        self._fold = Fold.of(self._state.fold)
        self._offset = self._state.offset
        self._values = []
        self._partly = False

    def _report(self, fold: Fold) -> None:
        if fold.widened:
            self._tell(
                "more is measured than Comet takes (12,000 values a minute, 15,000 of a name): several windows are "
                "sent as one. The run's folder has all of them"
            )
        if fold.crowded:
            self._tell("a worker has more than 1,000 names: the others are not sent. The run's folder has them")

    def _note(self, sending: Mapping[str, Any] | None, seconds: float) -> None:
        """Write down what is on its way, and in how many seconds the server knows of it."""
        self._save(replace(self._state, sending={**(sending or {}), "known": time.time() + seconds}))

    def _save(self, state: _State) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(state)))
        os.replace(fresh, self._file)
        self._state = state


def _missing(values: Sequence[Value], arrived: Counter[tuple[str, int, int]]) -> list[Value]:
    left = Counter(arrived)
    missing = []
    for value in values:
        if left[value.identity] > 0:
            left[value.identity] -= 1
        else:
            missing.append(value)
    return missing


def _read(path: Path) -> _State:
    try:
        return _State(**json.loads(path.read_text()))
    except FileNotFoundError:
        return _State()


def _lines(path: Path, start: int, end: int | None) -> Iterator[tuple[Record | None, int]]:
    """Yield whole lines, and where each ends; `None` for one that cannot be read."""
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            start += len(line)
            if not line.endswith(b"\n") or (end is not None and start > end):
                return
            yield from_line(line), start
