"""A thread that delivers a worker's records while it trains."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..lock import Held
from .client import Away, Busy, Denied, Experiment
from .delivery import BATCH, Delivery
from .names import Mode
from .run import Description

_log = logging.getLogger("farandole")

INTERVAL = 2.0  # seconds between requests, as comet_ml's own
PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds, after requests that were not answered


class Messages:
    """Tells each thing once, and what all workers see on one worker of a machine.

    speaks: whether this is the one.
    """

    def __init__(self) -> None:
        self.speaks = True
        self._told: set[str] = set()

    def __call__(self, text: str, about: str = "", own: bool = False) -> None:
        """Log a warning, unless one with the same text, or about the same, was logged.

        own: it is about this worker only.
        """
        if (about or text) not in self._told:
            self._told.add(about or text)
            _log.log(logging.WARNING if own or self.speaks else logging.INFO, "Comet: %s", text)


class Sender(threading.Thread):
    """Delivers files of records to an experiment, until `finish`.

    Args:
        reach: makes the experiment, in the thread.
        files: of the records.
        description: what to note of the run; `None` if another worker does.
    """

    def __init__(
        self,
        reach: Callable[[], Experiment],
        files: Sequence[Path],
        mode: Mode,
        share: float,
        tell: Messages,
        description: Description | None,
    ) -> None:
        super().__init__(name="farandole-comet", daemon=True)
        self._reach, self._tell, self._description = reach, tell, description
        self._open = [partial(Delivery, file, mode, share, tell) for file in files]
        self.files, self._folder = files, files[0].parent
        self._experiment: Experiment | None = None
        self._deliveries: list[Delivery] = []
        self._closing = threading.Event()
        self._until = 0.0
        self._beat_at = 0.0
        self._failures = 0

    def finish(self, seconds: float) -> None:
        """Send what is left, at most for a while, and end; what remains is for `farandole comet replay`."""
        self._until = time.monotonic() + seconds
        self._closing.set()
        self.join(max(seconds, 0.5))
        if self.is_alive():
            self._left()

    def run(self) -> None:
        try:
            pause: float | None = 0.0
            while not self._closing.wait(pause):
                pause = self._round(last=False)
            while (pause := self._round(last=True)) is not None:
                if time.monotonic() + pause > self._until:
                    self._left()
                    break
                time.sleep(pause)
            self._beat(alive=False)
        except Denied as reason:
            self._tell(
                f"{reason}. The numbers stay in {self._folder}; `farandole comet replay {self._folder}` sends them"
            )
        except Exception:
            self._left()
            raise
        finally:
            for delivery in self._deliveries:
                delivery.close()
            if self._experiment is not None:
                self._experiment.close()

    def _round(self, last: bool) -> float | None:
        """Deliver once; return in how many seconds to go on, `None` if nothing is left at the end."""
        try:
            while self._open:
                self._deliveries.append(self._open[0]())
                del self._open[0]
            if self._experiment is None:
                experiment = self._reach()
                experiment.create()
                self._experiment = experiment
            if self._description is not None:
                self._deliveries[0].describe(self._experiment, self._description)
            self._beat(alive=True)
            sent = self._deliver(self._experiment, last)
        except Busy as asked:
            if asked.by_server:
                self._tell(f"{asked}. What it has not taken is sent again", "busy")
            return asked.seconds
        except Away as reason:
            self._tell(f"{reason}. The numbers stay in {self._folder}, and are sent when it answers", "away")
            self._failures += 1
            return min(PAUSE * 2.0 ** (self._failures - 1), _LONGEST_PAUSE)
        except Held as other:
            self._tell(f"{other}; this worker waits for that")
            return INTERVAL
        except OSError as reason:
            self._tell(f"cannot write to {self._folder}: {reason}. Nothing is sent while that is so", "disk")
            return 10.0
        self._failures = 0
        if not last:
            return INTERVAL if sent < BATCH else 0.0
        return 0.0 if sent else None

    def _deliver(self, experiment: Experiment, last: bool) -> int:
        """Deliver of each file, also if one has to wait; return the most values of one."""
        sent, waits = 0, []
        for delivery in self._deliveries:
            try:
                sent = max(sent, delivery.deliver(experiment, last))
            except Busy as wait:
                waits.append(wait)
        if waits and not sent:
            raise min(waits, key=lambda wait: wait.seconds)
        return sent

    def _beat(self, alive: bool) -> None:
        """Keep the experiment marked as running; the worker that describes it does so."""
        if self._description is None or self._experiment is None or (alive and time.monotonic() < self._beat_at):
            return
        try:
            self._beat_at = time.monotonic() + self._experiment.beat(alive)
        except (Away, Busy):
            if alive:
                raise

    def _left(self) -> None:
        text = f"not all numbers are sent yet: `farandole comet replay {self._folder}` sends the rest"
        self._tell(text, "left", own=True)
