"""Where the commands print tables."""

from __future__ import annotations

import sys

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_WIDTH = 200  # lines of a table that goes to a file or to grep are not folded to a terminal's width


def console() -> Console:
    """Return a console on standard output, as wide as the terminal, or wide where there is none."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def table(*headers: str) -> Table:
    """Return a plain table; its cells are text, not markup."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for header in headers:
        made.add_column(header, overflow="fold")
    return made
