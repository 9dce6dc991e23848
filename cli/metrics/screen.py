"""What `farandole watch` shows: the newest window of each worker, as a bar."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ...plugins.metrics.folder import Reader
from ...plugins.metrics.records import Event, Record, Straggler, Window, Workers
from ...plugins.metrics.report.history import SPLIT
from ...plugins.metrics.report.words import number, of_workers, reason
from ..console import table

_COLOURS = {
    "data": "yellow",
    "forward": "bright_blue",
    "backward": "blue",
    "communication": "cyan",
    "update": "green",
    "save": "magenta",
    "load": "bright_magenta",
    "other": "white",
    "wait": "bright_black",
}
_EVENTS = 5
_BESIDES = 46  # characters of the other columns, without the host
_HOST = 20
_AROUND = 10  # lines above and below the workers


class Screen:
    """The state of a run, drawn anew after each `update`; without colours, a bar is made of initials.

    ended: whether its last attempt has ended.
    """

    def __init__(self, path: Path, reader: Reader, colours: bool) -> None:
        self.ended = False
        self._path = path
        self._reader = reader
        self._colours = colours
        self._attempts: list[Mapping[str, Any]] = []
        self._windows: dict[int, Window] = {}
        self._straggler: Straggler | None = None
        self._events: deque[Event] = deque(maxlen=_EVENTS)
        self._end: Event | None = None

    def update(self) -> None:
        """Read what was written since the last call."""
        self._attempts = self._reader.folder.info()["attempts"]
        for record in self._reader.records():
            self._add(record)
        now = len(self._attempts) - 1
        self._windows = {rank: window for rank, window in self._windows.items() if window.attempt == now}
        self.ended = self._end is not None and self._end.attempt == now

    def draw(self, width: int, height: int | None = None) -> RenderableType:
        """Return what to print; `height` limits the workers that are shown."""
        parts: list[RenderableType] = [self._headline(), self._numbers(), self._slow(), Text()]
        shown = sorted(self._windows)
        if height is not None and len(shown) > (room := max(1, height - _AROUND)):
            shown = sorted(shown, key=self._urgency)[:room]
        parts += [self._workers(sorted(shown, key=self._first), width), self._legend()]
        if len(shown) < len(self._windows):
            parts.append(Text(f"{len(self._windows) - len(shown)} more workers, which wait longer", "dim"))
        parts += [Text(f"step {number(event.step)}: {_printable(event.text)}", "dim") for event in self._events]
        for part in parts:
            if isinstance(part, Text):
                part.no_wrap, part.overflow = True, "ellipsis"
        return Group(*parts)

    def _add(self, record: Record) -> None:
        match record:
            case Window():
                self._windows[record.rank] = record
            case Workers():
                self._straggler = record.straggler
            case Event():
                failed = record.event == "end" and record.details.get("error")
                if record.event == "end" and (record.rank == 0 or failed):
                    self._end = record
                if record.rank == 0 or failed or record.event == "sink":
                    self._events.append(record)

    # Lines.

    def _headline(self) -> Text:
        now = self._attempts[-1] if self._attempts else {}
        names = [of_workers(now.get("world_size", "?")), *filter(None, (now.get("strategy"), now.get("launcher")))]
        restarts = len(self._attempts) - 1
        names += [f"{restarts} restart{'s' * (restarts > 1)}"] if restarts > 0 else []
        line = Text(str(self._path), "bold") + Text(f"  {', '.join(map(_printable, names))}")
        if self.ended and self._end is not None:
            line += Text(f"  {_printable(self._end.text)}", "bold red" if self._end.details.get("error") else "green")
        return line

    def _numbers(self) -> Text:
        if not self._windows:
            return Text("nothing measured yet", "dim")
        windows = self._windows.values()
        newest = max(windows, key=lambda window: window.step)
        said = [f"step {number(newest.step)}", f"epoch {newest.epoch}"]
        seconds = [
            window.steps * window.values["step_ms"].mean / 1000 for window in windows if "step_ms" in window.values
        ]
        samples = [window.samples for window in windows if window.samples is not None]
        if seconds and sum(seconds) > 0 and samples:
            said.append(f"{number(sum(samples) * len(seconds) / sum(seconds))} samples a second")
        if "loss" in newest.values:
            said.append(f"loss {number(newest.values['loss'].mean, 4)}")
        return Text("  ".join(said))

    def _slow(self) -> Text:
        found = self._straggler
        if found is None:
            return Text("no straggler", "green")
        cost = f"{100 * found.impact:.0f} % of each step, {number(found.seconds_an_hour)} s an hour"
        return Text(f"straggler: worker {found.rank}: {reason(found.cause)}; {cost}", "bold red")

    def _workers(self, ranks: list[int], width: int) -> RenderableType:
        longest = max((self._milliseconds(rank, "step") for rank in ranks), default=0.0)
        shown = table("Worker", "Host", "Step ms", "Where its time goes", "Waits", "Memory MB")
        for place, column in enumerate(shown.columns):
            column.no_wrap, column.overflow = True, "ellipsis"
            column.justify = "left" if place in (1, 3) else "right"
        hosts = {rank: self._host(rank) for rank in ranks}
        bar = width - _BESIDES - max(map(len, hosts.values()), default=0)
        for rank in ranks:
            step, wait = (self._milliseconds(rank, name) for name in ("step", "wait"))
            values = self._windows[rank].values
            shown.add_row(
                str(rank),
                Text(hosts[rank]),
                number(step) if step else "-",
                self._bar(rank, longest, max(10, min(60, bar))),
                f"{100 * wait / step:.0f} %" if step and "wait_ms" in values else "-",
                number(values["memory_mb"].mean) if "memory_mb" in values else "-",
                style="bold red" if self._is_straggler(rank) else None,
            )
        return shown

    def _bar(self, rank: int, longest: float, width: int) -> Text:
        bar, done, time = Text(), 0, 0.0
        for phase in SPLIT:
            time += self._milliseconds(rank, phase)
            until = round(width * time / longest) if longest else 0
            cells = max(0, min(width, until) - done)
            bar.append("█" * cells if self._colours else phase[0] * cells, _COLOURS[phase])
            done += cells
        return bar

    def _legend(self) -> Text:
        measured = [phase for phase in SPLIT if any(f"{phase}_ms" in each.values for each in self._windows.values())]
        line = Text()
        for phase in measured:
            line.append("█ " if self._colours else f"{phase[0]} ", _COLOURS[phase])
            line.append(f"{phase}  ")
        return line

    # Workers.

    def _milliseconds(self, rank: int, phase: str) -> float:
        spread = self._windows[rank].values.get(f"{phase}_ms")
        return spread.mean if spread is not None and math.isfinite(spread.mean) else 0.0

    def _is_straggler(self, rank: int) -> bool:
        return self._straggler is not None and self._straggler.rank == rank

    def _first(self, rank: int) -> tuple[bool, int]:
        return not self._is_straggler(rank), rank

    def _urgency(self, rank: int) -> tuple[bool, float]:
        return not self._is_straggler(rank), self._milliseconds(rank, "wait")

    def _host(self, rank: int) -> str:
        hosts = (self._attempts[-1].get("hosts") if self._attempts else None) or []
        name = _printable(hosts[rank]) if rank < len(hosts) else "-"
        return name if len(name) <= _HOST else f"{name[: _HOST - 1]}…"


def _printable(text: Any) -> str:
    """Return a text without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(text))
