"""Where the commands print tables."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 200  # width of tables in a file or pipe, so that lines are not folded


def console() -> Console:
    """Return a console on standard output, as wide as the terminal, if there is one."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def table(*headers: str) -> Table:
    """Return a plain table; its cells are text, not markup."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for header in headers:
        made.add_column(header, overflow="fold")
    return made
