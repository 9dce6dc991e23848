"""`farandole strategies`: list the strategies, or show the options of one."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

import click
from rich.text import Text

from ..adapters.errors import LauncherError
from ..adapters.registry import StrategyRow, create_strategy, strategy_row, strategy_rows
from ..plugins.launch.installed import problem
from .console import console, table


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def strategies(name: str | None, as_json: bool) -> None:
    """List the strategies, or show the options of one.

    With NAME, its engine is imported, and its options with their defaults and its capabilities are shown.
    """
    if name is None:
        _list(as_json)
    else:
        _show(strategy_row(name), as_json)


def _list(as_json: bool) -> None:
    rows = [_describe(row) for row in strategy_rows().values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2, default=str))
        return
    listed = table("Strategy", "Framework", "Launcher", "Ready", "What it is")
    for row in rows:
        ready = Text("yes", "green") if row["installed"] else Text("no", "yellow")
        listed.add_row(row["name"], row["framework"], row["launcher"] or "python", ready, row["description"])
    out = console()
    out.print(listed)
    for found in dict.fromkeys((row["problem"], row["fix"]) for row in rows if not row["installed"]):
        names = [row["name"] for row in rows if (row["problem"], row["fix"]) == found]
        line = f"{', '.join(names)}: needs {found[0]}. Fix it with: {found[1]}"
        out.print(Text(line), soft_wrap=True)
    out.print("Options of one: farandole strategies NAME", soft_wrap=True)


def _describe(row: StrategyRow) -> dict[str, Any]:
    """Describe a strategy without importing its engine."""
    found = None
    for requirement in row.requirements:
        if found is None and (seen := problem(requirement)) is not None:
            found = f"{requirement.distribution}, which is {seen[0]}", seen[1]
    return {
        "name": row.name,
        "framework": row.requirements[0].module.split(".")[0],
        "launcher": row.launcher,
        "description": row.description,
        "preset": dict(row.options),
        "installed": found is None,
        "problem": found and found[0],
        "fix": found and found[1],
    }


def _show(row: StrategyRow, as_json: bool) -> None:
    strategy_class = row.load()
    options = [
        parameter
        for parameter in inspect.signature(strategy_class).parameters.values()
        if parameter.name not in row.options
    ]
    about, meanings = _documented(strategy_class)
    can = _capabilities(row)
    if as_json:
        listed = [
            {
                "name": option.name,
                "default": option.default,
                "type": _type(option),
                "meaning": meanings.get(option.name, ""),
            }
            for option in options
        ]
        described = {**_describe(row), "options": listed, "capabilities": can, "about": about}
        click.echo(json.dumps(described, indent=2, default=str))
        return
    out = console()
    out.print(Text(row.name, "bold") + Text(f": {row.description}"), soft_wrap=True)
    out.print(Text(f"\n{about}"))
    needs = ", ".join(requirement.distribution for requirement in row.requirements)
    out.print(Text(f"\nIt needs {needs}. {_start(row)}"))
    if options:
        defaults = table("Option", "Default", "What it does")
        for option in options:
            defaults.add_row(option.name, repr(option.default), meanings.get(option.name) or _type(option))
        out.print()
        out.print(defaults)
        example = f"{options[0].name}={options[0].default!r}"
        out.print(Text(f'In a script: create_strategy("{row.name}", {example})'), soft_wrap=True)
    if can is not None:
        listed_capabilities = ", ".join(f"{name} {_words(value)}" for name, value in can.items())
        out.print(Text(f"\nWith its defaults: {listed_capabilities}"))


def _start(row: StrategyRow) -> str:
    if row.launcher is None:
        return "Start it: python train.py"
    through = "starts the workers itself" if row.launcher == "tf_config" else f"calls {row.launcher}"
    return f"Start it: farandole run --strategy {row.name} -n 2 train.py, which {through}; other launchers work too."


def _documented(strategy_class: type) -> tuple[str, dict[str, str]]:
    """Return a class's docstring up to its sections, and what each option means: its own and those of its bases."""
    about = ""
    meanings: dict[str, str] = {}
    for kind in reversed(strategy_class.__mro__):
        about, _, sections = inspect.cleandoc(kind.__doc__ or "").partition("\n\nArgs:\n")
        for entry in re.split(r"\n    (?=\w)", "\n" + sections.partition("\n\n")[0])[1:]:
            names, _, meaning = entry.partition(": ")
            meanings |= dict.fromkeys(names.split(", "), " ".join(meaning.split()))
    paragraphs = about.partition("\n\nRaises:\n")[0].split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs), meanings


def _capabilities(row: StrategyRow) -> Mapping[str, Any] | None:
    """Return its capabilities here with default options; `None` if the environment does not let us create it."""
    try:
        capabilities = create_strategy(row.name).capabilities
    except LauncherError:
        return None
    return {
        name: sorted(value) if isinstance(value, frozenset) else value
        for name, value in dataclasses.asdict(capabilities).items()
    }


def _words(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(value) or "nothing"
    return {True: "yes", False: "no"}.get(value, str(value))


def _type(option: inspect.Parameter) -> str:
    return str(option.annotation)
