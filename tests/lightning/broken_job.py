"""A job of two workers that breaks, and how long it takes from there to its end."""

from __future__ import annotations

import time

from farandole.plugins.launch.job import Marked, run_marked

BOUND = 20.0  # seconds from a fault until every process has ended


class Broken:
    """A job of two workers, one of which has a fault."""

    def __init__(self, argv: list[str]) -> None:
        self._fault = self._end = 0.0
        self.job = run_marked(argv, timeout=100, on_line=self._line, during=self._until_all_have_ended)
        assert self._fault, self.job.describe()
        assert not self.job.timed_out, self.job.describe()
        self.seconds = self._end - self._fault

    def _line(self, line: str) -> None:
        if "FAULT" in line:
            self._fault = time.monotonic()

    def _until_all_have_ended(self, job: Marked) -> None:
        until = time.monotonic() + 90
        while job.processes() and time.monotonic() < until:
            time.sleep(0.1)
        self._end = time.monotonic()
