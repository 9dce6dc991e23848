"""Show a build's progress: one live line on a terminal, else a line for each step and each tenth of it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn


class Reporter:
    """Shows steps, their progress, and notes, on standard error."""

    def __init__(self, console: Console | None = None, *, verbose: bool = False) -> None:
        self.verbose = verbose
        self._console = console or Console(stderr=True, highlight=False)
        self._started = time.monotonic()
        self._live: Progress | None = None
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24))
            self._live = Progress(
                *columns, TaskProgressColumn(), TimeElapsedColumn(), console=self._console, transient=True
            )
            self._task = self._live.add_task("", total=None)
        self._step = ""
        self._tenth = 0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def step(self, name: str) -> None:
        """Begin a step; its progress is unknown until `advance` is called."""
        self._step, self._tenth = name, 0
        self._line(name)
        if self._live:
            self._live.update(self._task, description=name, total=None, completed=0)

    def advance(self, percent: int, what: str) -> None:
        """Show the progress of the current step, in percent, and its current file."""
        if self._live:
            self._live.update(self._task, description=f"{self._step}: {what}"[:60], total=100, completed=percent)
        elif percent // 10 > self._tenth and percent < 100:
            self._tenth = percent // 10
            self._line(f"{self._step}: {percent} %")

    def output(self, line: str) -> None:
        """Show a line of a tool's own output, if the user asked for it."""
        if self.verbose:
            self._print(line)

    def note(self, text: str) -> None:
        """Show an important message."""
        self._print(text)

    def _line(self, text: str) -> None:
        self._print(f"[{time.monotonic() - self._started:5.1f} s] {text}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
