"""Hands records to sinks in background threads, one for each: training waits for none, and none for another."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .records import Event, Record
from .sinks import RunInfo, Sink

QUEUED = 10_000
"""Records that wait for a sink; the oldest ones are dropped after that. The run's folder has them."""

_FOR_THE_FOLDER = 5.0  # seconds

_log = logging.getLogger("farandole")


class Writer:
    """The threads of one attempt's sinks.

    Args:
        first: the sink that writes the run's folder, which records the others' failures.
        sinks: the others, with what each is opened with.
        begin: the first record.
    """

    def __init__(self, run: RunInfo, first: Sink, sinks: Sequence[tuple[Sink, RunInfo]], begin: Record) -> None:
        self._run, self._last, self._opened = run, begin, sinks
        self._first = SinkThread(first, run, 10 * QUEUED, lambda text: None)
        self._others = [SinkThread(sink, own, QUEUED, self._record) for sink, own in sinks]
        self.put(begin)

    def put(self, record: Record) -> None:
        """Queue a record."""
        self._last = record
        for thread in [self._first, *self._others]:
            thread.put(record)

    def again(self, record: Record) -> Writer:
        """Open the sinks once more, after `close`."""
        opened = [(sink, replace(own, step=record.step)) for sink, own in self._opened]
        return Writer(replace(self._run, step=record.step), type(self._first.sink)(), opened, record)

    def close(self, seconds: float) -> None:
        """Write what is queued, and close all sinks; those that take longer are left."""
        until = time.monotonic() + seconds
        for thread in self._others:
            thread.stop()
        for thread in self._others:
            thread.join(max(0.0, until - time.monotonic()))
        self._first.stop()  # it has recorded the others' failures
        self._first.join(_FOR_THE_FOLDER)

    def _record(self, text: str) -> None:
        last = self._last
        self._first.put(
            Event(
                attempt=self._run.attempt,
                rank=self._run.rank,
                time=last.time,
                epoch=last.epoch,
                step=last.step,
                event="sink",
                text=text,
            )
        )


class SinkThread:
    """Calls the methods of one sink in a thread, in order."""

    def __init__(self, sink: Sink, run: RunInfo, most: int, tell: Callable[[str], None]) -> None:
        self.sink, self._run, self._tell = sink, run, tell
        self._name = sink.name or type(sink).__name__
        self._told: set[str] = set()
        self._queue: deque[Record] = deque(maxlen=most)
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name=f"farandole-{self._name}", daemon=True)
        self._thread.start()

    def put(self, record: Record) -> None:
        with self._changed:
            full = len(self._queue) == self._queue.maxlen
            self._queue.append(record)
            self._changed.notify()
        if full:
            self._say("queue", "is too slow: its oldest records are dropped, the run's folder has them")

    def stop(self) -> None:
        """Close the sink after what is queued."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._say("close", f"was left after {seconds:.0f} s: it had not ended")

    def _work(self) -> None:
        self._call("open", self._run)
        while (record := self._next()) is not None:
            self._call("write", record)
        self._call("close")

    def _next(self) -> Record | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._stopping)
            return self._queue.popleft() if self._queue else None

    def _call(self, method: str, *arguments: Any) -> None:
        try:
            getattr(self.sink, method)(*arguments)
        except Exception as error:
            self._say(method, f"failed in {method}: {type(error).__name__}: {error}")

    def _say(self, what: str, text: str) -> None:
        if what not in self._told:
            self._told.add(what)
            said = f"metrics sink {self._name} on worker {self._run.rank} {text}"
            _log.warning("%s. Training goes on", said)
            self._tell(said)


def with_shared(sinks: Sequence[Sink], run: RunInfo, known: dict[str, Any]) -> dict[str, Any]:
    """Return what sinks share with the other workers, by their names; rank 0 calls it."""
    shared = {}
    for name, sink in named(sinks):
        try:
            shared[name] = dict(sink.share(replace(run, shared=known.get(name, {}))))
        except Exception as error:
            _log.warning("metrics sink %s failed in share: %s: %s", name, type(error).__name__, error)
    return shared


def named(sinks: Sequence[Sink]) -> list[tuple[str, Sink]]:
    """Return sinks with their names; a second one of a name gets a number."""
    found: dict[str, Sink] = {}
    for sink in sinks:
        base = sink.name or type(sink).__name__
        count = sum(each.partition("-")[0] == base for each in found)
        found[base if not count else f"{base}-{count + 1}"] = sink
    return list(found.items())
