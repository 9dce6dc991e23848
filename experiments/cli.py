"""The command `farandole experiment NAME`; it imports the named experiment, and never a framework."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from ..adapters.errors import OptionError
from .experiment import Experiment
from .options import file_option
from .table import EXPERIMENTS, Entry, experiment_entry


class _Experiments(click.Group):
    """Lists experiments from their table, and creates the command of the named one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(EXPERIMENTS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        return _command(experiment_entry(cmd_name))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Experiments"):
            formatter.write_dl([(entry.name, entry.description) for entry in EXPERIMENTS.values()])


@click.command(cls=_Experiments, subcommand_metavar="NAME [OPTIONS]")
def experiment() -> None:
    """Run a study that compares strategies, and say whether it passed.

    The table goes to standard output, progress to standard error; the exit code is 1 if a bound is not met.
    """


def _names(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> list[str] | None:
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if text is not None and not names:
        raise OptionError("--strategies names no strategy: leave it out to run all installed ones")
    return names or None


def _numbers(_ctx: click.Context, _parameter: click.Parameter, text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise OptionError(f"--workers {text} is not a number or a list of numbers such as 2,3") from None
    if min(numbers) < 1:
        raise OptionError(f"--workers {text}: ask for at least one")
    return numbers


def _common_options(study: Experiment) -> list[click.Parameter]:
    return [
        click.Option(
            ["--strategies"],
            metavar="A,B",
            callback=_names,
            help="Run these only, separated by commas.  [default: all that are installed]",
        ),
        click.Option(
            ["--workers"],
            metavar="N[,M]",
            default=study.workers,
            show_default=True,
            callback=_numbers,
            help="Number of workers; each of several numbers makes a row. Strategies of one process use 1.",
        ),
        file_option(["--json", "json_path"], "Write rows, verdict and environment here."),
    ]


def _command(entry: Entry) -> click.Command:
    study = entry.load()
    callback: Callable[..., None] = click.pass_context(lambda ctx, **given: _run(ctx, entry.name, given))
    return click.Command(
        entry.name, params=[*_common_options(study), *study.options], help=entry.description, callback=callback
    )


def _run(ctx: click.Context, name: str, options: dict[str, Any]) -> None:
    from rich.console import Console

    from .choice import asked_strategies, check_requirements, installed_strategies
    from .display import Display
    from .report import Report
    from .runner import run_jobs

    asked, workers, json_path = options.pop("strategies"), options.pop("workers"), options.pop("json_path")
    study, display = experiment_entry(name).load(), Display()
    check_requirements(name, study)
    # As Ctrl-C: by default the signal would end only this process, and its workers would continue.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if asked is None:
        strategies, left_out = installed_strategies(study)
        for why in left_out.values():
            display.note(f"left out: {why}")
    else:
        strategies = asked_strategies(name, study, asked)
    finished, failures = run_jobs(name, study.jobs(strategies, workers, options), display)
    rows = study.rows(finished)
    for path, text in study.files(rows, options).items():
        path.write_text(text)
    report = Report(name, study.columns, rows, [*failures, *study.judge(rows)])
    if json_path is not None:
        report.write(json_path)
    report.show(Console())
    if not report.passed:
        ctx.exit(1)
