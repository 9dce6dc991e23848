"""Show running jobs on standard error: one live line on a terminal, else a line for each job."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from .experiment import Job


class Display:
    """Notes, the progress of jobs, and why one failed."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)

    def note(self, text: str) -> None:
        """Show an important message."""
        self._print(text)

    @contextlib.contextmanager
    def job(self, job: Job, number: int, jobs: int) -> Iterator[Callable[[str | None], None]]:
        """Show that a job runs during the block; it yields a function that shows the job's progress."""
        title = f"[{number + 1}/{jobs}] {job}"
        started = time.monotonic()
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
            with Progress(*columns, console=self._console, transient=True) as live:
                task = live.add_task(title)
                yield lambda text: live.update(task, description=f"{title}: {text}") if text else None
        else:
            self._print(f"{title} ...")
            yield lambda _text: None
        self._print(f"{title}: {time.monotonic() - started:.1f} s")

    def failed_job(self, job: Job, failure: str, last_words: Sequence[str]) -> None:
        """Show why a job failed, with the end of the failed worker's traceback."""
        self._print(f"{job}: {failure}. Its worker's last words:")
        for line in last_words:
            self._print(f"    {line}")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
