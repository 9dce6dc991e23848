"""The base of experiments: the jobs that they run, the work of one worker, and the verdict."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import click

from ..adapters.registry import Requirement, strategy_row

Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One column of the table: its key in a row, and how `format` shows a number."""

    name: str
    spec: str = ""

    def show(self, value: Any) -> str:
        """Return `value` formatted; a dash for `None`."""
        return "-" if value is None else format(value, self.spec)


@dataclass(frozen=True)
class Job:
    """Workers to start together.

    options: the experiment's arguments for them: any JSON.
    timeout: in seconds.
    env: environment variables to add to those of the command.
    """

    strategy: str
    workers: int
    options: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 900
    env: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = "".join(f", {name} {value}" for name, value in self.options.items() if isinstance(value, str))
        return f"{self.strategy}, {self.workers} worker{'s' if self.workers > 1 else ''}{words}"


@dataclass(frozen=True)
class Finished:
    """A job that succeeded, with the results of `Experiment.work` in rank order."""

    job: Job
    results: Sequence[Any]


class Experiment(ABC):
    """One study. Its module imports no framework, because the command line imports it; `work` imports what it needs.

    columns: in order; a row has the relevant ones as keys. Rows with the same keys make a table.
    options: click options, beside strategies and workers.
    requirements: what it needs beside the strategies' engines.
    strategies: the strategies that it supports; `None` means any.
    workers: the default numbers of workers, separated by commas.
    """

    columns: ClassVar[tuple[Column, ...]]
    options: ClassVar[tuple[click.Option, ...]] = ()
    requirements: ClassVar[tuple[Requirement, ...]] = ()
    strategies: ClassVar[tuple[str, ...] | None] = None
    workers: ClassVar[str] = "2"

    @abstractmethod
    def jobs(self, strategies: Sequence[str], workers: Sequence[int], options: Mapping[str, Any]) -> list[Job]:
        """Return the jobs for these strategies and numbers of workers, in the order in which they run."""

    @abstractmethod
    def work(self, strategy: str, options: Mapping[str, Any]) -> Any:
        """Do the work of one worker of a job, and return any JSON; runs in the worker's own process.

        `options` are the job's, and "folder": a folder for all jobs of the run, removed after them.
        """

    @abstractmethod
    def rows(self, finished: Sequence[Finished]) -> list[Row]:
        """Return the table's rows. Failed jobs are missing; they have been reported."""

    @abstractmethod
    def judge(self, rows: Sequence[Row]) -> list[str]:
        """Return a line for each bound that a row fails; none if the experiment passed."""

    def files(self, rows: Sequence[Row], options: Mapping[str, Any]) -> Mapping[Path, str]:
        """Return what the options ask for beside the report: texts, by the files to write."""
        return {}


def placements(strategies: Iterable[str], workers: Iterable[int]) -> Iterator[tuple[str, int]]:
    """Yield each strategy with each number of workers; strategies of one process once, with 1."""
    numbers = list(dict.fromkeys(workers))
    for strategy in strategies:
        for number in numbers if strategy_row(strategy).launcher is not None else [1]:
            yield strategy, number


def above(row: Row, column: str, bound: float) -> list[str]:
    """Return a line if the row's number is above `bound`, missing or not a number; else nothing."""
    return [] if _is_number(row[column]) and row[column] <= bound else [_failure(row, column, f"at most {bound:g}")]


def below(row: Row, column: str, bound: float) -> list[str]:
    """Return a line if the row's number is below `bound`, missing or not a number; else nothing."""
    return [] if _is_number(row[column]) and row[column] >= bound else [_failure(row, column, f"at least {bound:g}")]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == value


def failure(row: Row, text: str) -> str:
    """Return a line on what is wrong with a row."""
    labels = ", ".join(
        f"{name}={value}" for name, value in row.items() if isinstance(value, str) or name.endswith("workers")
    )
    return f"{labels}: {text}"


def _failure(row: Row, column: str, bound: str) -> str:
    value = row[column]
    found = "is missing" if value is None else f"is {value:.4g}"
    return failure(row, f"{column} {found}, must be {bound}")
