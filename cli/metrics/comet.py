"""`farandole comet`: what to do with a run's numbers for Comet."""

from __future__ import annotations

from pathlib import Path

import click


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def comet() -> None:
    """Send a run's numbers to Comet."""


@comet.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--patience", default=60.0, show_default=True, help="Seconds without an answer until it gives up.")
def replay(folder: Path, patience: float) -> None:
    """Send what Comet has not of the run in FOLDER.

    That is all of a run that was offline, and what was left of one that ended, or was killed, before all was sent. It
    can be repeated: what Comet has is not sent again. The API key is the one that comet_ml finds.
    """
    from ...plugins.metrics.comet.replay import replay as send

    done = send(folder, lambda line: click.echo(line, err=True), patience)
    for problem in done.problems:
        click.echo(f"{problem}", err=True)
    click.echo(
        f"{done.sent} values sent; Comet has {done.known} of this run, in {', '.join(done.experiments) or 'none'}"
    )
    if done.problems:
        raise click.ClickException(f"not everything is sent; `farandole comet replay {folder}` goes on from here")
