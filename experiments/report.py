"""An experiment's result: a table and a verdict for people, JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .environment import describe_environment
from .experiment import Column, Row


@dataclass(frozen=True)
class Report:
    """An experiment's result: its rows, and a line for each failed bound and each failed job."""

    experiment: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    failures: Sequence[str]

    @property
    def passed(self) -> bool:
        """Whether there were rows, and nothing failed."""
        return bool(self.rows) and not self.failures

    def show(self, console: Console) -> None:
        """Print a table for each kind of rows, and the failures below."""
        kinds: dict[frozenset[str], list[Row]] = {}
        for row in self.rows:
            kinds.setdefault(frozenset(row), []).append(row)
        for rows in kinds.values():
            table = self._table(rows, gap=2)
            if _width(console, table) > console.width:
                table = self._table(rows, gap=1)
            # A table wider than the window wraps: truncated numbers would be worse.
            console.width = max(_width(console, table), console.width)
            console.print(table)
            console.print()
        if self.passed:
            console.print(f"{self.experiment}: passed", markup=False, highlight=False)
            return
        console.print(f"{self.experiment}: FAILED", markup=False, highlight=False)
        for failure in self.failures or ["there is no row: no job ran"]:
            console.print(f"  - {failure}", markup=False, highlight=False, soft_wrap=True)

    def _table(self, rows: Sequence[Row], gap: int) -> Table:
        # Between columns stands the box's own space.
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, gap - 1, 0, 0))
        columns = [column for column in self.columns if column.name in rows[0]]
        for column in columns:
            text = any(isinstance(row[column.name], str) for row in rows)
            # One word of a heading per line, so that nine columns fit into 80 characters.
            heading = column.name.replace("_", "\n")
            table.add_column(heading, justify="left" if text else "right", no_wrap=True, vertical="bottom")
        for row in rows:
            table.add_row(*(column.show(row[column.name]) for column in columns))
        return table

    def write(self, path: Path) -> None:
        """Write `{"experiment", "passed", "rows", "failures", "environment"}`; NaN and infinity become null."""
        content = {
            "experiment": self.experiment,
            "passed": self.passed,
            "rows": list(self.rows),
            "failures": list(self.failures),
            "environment": describe_environment(),
        }
        path.write_text(json.dumps(_finite(content), indent=2, allow_nan=False) + "\n")


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(max_width=1000), table).maximum


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
