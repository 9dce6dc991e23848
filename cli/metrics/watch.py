"""`farandole watch`: a run, as it goes on."""

from __future__ import annotations

import time
from pathlib import Path

import click
from rich.live import Live

from ..console import console
from .place import find_run
from .screen import Screen

_SECONDS = 1.0  # between two looks


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--once", is_flag=True, help="Print it once, with all workers.")
def watch(folder: Path, once: bool) -> None:
    """Show the run in DIR: its speed, each worker's time, stragglers.

    DIR is a run's folder, or a folder of several: then it is the newest. It ends with the run, or with Ctrl-C.
    """
    from ...plugins.metrics.folder import Reader

    run = find_run(folder)
    out = console()
    screen = Screen(run, Reader(run), colours=out.color_system is not None)
    screen.update()
    if once:
        out.print(screen.draw(out.width))
        return
    try:
        with Live(screen.draw(out.width, out.height), console=out, auto_refresh=False) as live:
            while not screen.ended:
                time.sleep(_SECONDS)
                screen.update()
                live.update(screen.draw(out.width, out.height), refresh=True)
    except KeyboardInterrupt:
        pass  # as it is meant to be left
