"""`farandole report`: a run's folder as a page of HTML."""

from __future__ import annotations

from pathlib import Path

import click

from ...adapters.errors import OptionError
from .place import find_run


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Where to write it.  [default: report.html in DIR]")
def report(folder: Path, out: Path | None) -> None:
    """Write the run in DIR as one page of HTML, with charts.

    DIR is a run's folder, or a folder of several: then it is the newest. The page needs no network. It shows loss,
    throughput, where each worker's time goes, how long it waited for the others, stragglers, and restarts.
    """
    from ...plugins.metrics.report.page import make_page

    run = find_run(folder)
    page = out or run / "report.html"
    text = make_page(run)
    try:
        page.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write {page}: {error.strerror}; name another file with --out") from None
    click.echo(f"{page}: {len(text) / 1e6:.1f} MB")
