"""`farandole doctor`: what works here, and the commands that fix the rest."""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
from importlib.metadata import version

import click
from rich.console import Console
from rich.text import Text

from .checks import Check, check_build_tools, check_engines, check_environment, check_launchers, judge_gpus
from .console import console, table

_TIMEOUT = 120.0  # seconds for all imports together: processors are shared, and disks may be cold
_STYLES = {"ok": "green", "absent": "dim", "broken": "bold red", "note": "yellow"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check engines, launchers and tools, and say how to fix them.

    Each installed engine is imported in its own process. The exit code is 1 only if something installed is broken; what
    is not installed is no fault.
    """
    with Console(stderr=True).status("importing the engines…"):
        engines = list(check_engines(_TIMEOUT))
        gpus = judge_gpus(next((check for check in engines if check.name == "torch"), None))
        checks = [*engines, gpus, *check_launchers(), check_build_tools(), check_environment()]
    broken = any(check.status == "broken" for check in checks)
    host = {
        "farandole": version("farandole"),
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
    }
    if as_json:
        found = [dataclasses.asdict(check) for check in checks]
        click.echo(json.dumps({**host, "ok": not broken, "checks": found}, indent=2))
    else:
        _print(host, checks)
    sys.exit(1 if broken else 0)


def _print(host: dict[str, str], checks: list[Check]) -> None:
    out = console()
    about = "farandole {farandole}, Python {python} ({executable}), {platform}\n"
    out.print(Text(about.format(**host)), soft_wrap=True)
    shown = table("Looked at", "Status", "Version", "Details")
    for check in checks:
        detail = check.detail or ("not installed" if check.status == "absent" else "")
        shown.add_row(check.name, Text(check.status, _STYLES[check.status]), check.version, Text(detail))
    out.print(shown)
    for title, statuses in (("To fix", ("broken", "note")), ("To add what is absent, if you need it", ("absent",))):
        fixes = [check for check in checks if check.fix and check.status in statuses]
        if fixes:
            out.print(Text(f"\n{title}:"))
            for check in fixes:
                out.print(Text(f"  {check.name}: {check.fix}"), soft_wrap=True)
