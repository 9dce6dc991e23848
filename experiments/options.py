"""Options that several experiments take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ..adapters.errors import EngineUnavailableError, OptionError, did_you_mean
from ..plugins.launch.installed import package
from .display import Display

_Callback = Callable[[click.Context, click.Parameter, str | None], Any]
# The packages of a frontend, and the command that installs it. Keras comes with its engines.
_PACKAGES = {"lightning": (("lightning", "pytorch_lightning"), "pip install 'farandole[lightning]'")}


def some_of(kind: str, known: Sequence[str]) -> _Callback:
    """Return the callback of an option that takes names of one kind, separated by commas."""

    def chosen(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> list[str] | None:
        if text is None:
            return None
        names = [name.strip() for name in text.split(",")]
        for name in names:
            if name not in known:
                listed = ", ".join(known)
                raise OptionError(f"there is no {kind} {name!r}.{did_you_mean(name, known)} There are: {listed}")
        return names

    return chosen


def names_option(
    name: str,
    kind: str,
    known: Sequence[str],
    help: str,
    default: Sequence[str] | None = None,
    show_default: bool = True,
) -> click.Option:
    """Return an option that takes some of `known`, separated by commas; by default `default`, or all of them."""
    return click.Option(
        [name],
        metavar="A,B",
        default=",".join(default or known),
        show_default=show_default,
        callback=some_of(kind, known),
        help=help,
    )


def file_option(names: Sequence[str], help: str) -> click.Option:
    """Return an option that takes a file to write, of which the folder is there."""

    def writable(_ctx: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
        if path is not None and not path.absolute().parent.is_dir():
            raise OptionError(
                f"{parameter.opts[0]} {path}: there is no folder {path.absolute().parent}; create it first"
            )
        return path

    kind = click.Path(dir_okay=False, writable=True, path_type=Path)
    return click.Option([*names], type=kind, callback=writable, help=help)


def frontends_option(known: Sequence[str], help: str) -> click.Option:
    """Return the option that chooses frontends: by default all of `known` that are installed."""
    named = some_of("frontend", known)

    def chosen(ctx: click.Context, parameter: click.Parameter, text: str | None) -> list[str]:
        asked: list[str] | None = named(ctx, parameter, text)
        missing = {name: why for name in asked or known if (why := _problem(name)) is not None}
        if asked is not None:
            if missing:
                raise EngineUnavailableError(next(iter(missing.values())))
            return asked
        for why in missing.values():
            Display().note(f"left out: {why}")
        return [name for name in known if name not in missing]

    return click.Option(["--frontends"], metavar="A,B", callback=chosen, help=f"{help}  [default: {','.join(known)}]")


def _problem(frontend: str) -> str | None:
    """Return why a frontend cannot run here; `None` if it can."""
    packages, fix = _PACKAGES.get(frontend, ((), ""))
    if not packages or any(package(name) is not None for name in packages):
        return None
    return f"frontend {frontend!r} needs {packages[0]}, which is not installed. Install it with: {fix}"
