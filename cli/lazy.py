"""A click group that imports a command when it is run, so that help is fast and a broken command breaks no other."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click


@dataclass(frozen=True)
class LazyCommand:
    """Where a command is (`module:attribute`, relative to this package) and its line in the group's help."""

    target: str
    summary: str

    def load(self) -> click.Command:
        module, _, attribute = self.target.partition(":")
        command: click.Command = getattr(importlib.import_module(module, package=__package__), attribute)
        return command


class LazyGroup(click.Group):
    """A group of `LazyCommand`s; our own errors end in a message, without a traceback."""

    def __init__(self, *args: Any, lazy: Mapping[str, LazyCommand], **options: Any) -> None:
        super().__init__(*args, **options)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return None
        try:
            return self.lazy[cmd_name].load()
        except ImportError as error:
            raise click.ClickException(f"`{ctx.command_path} {cmd_name}` cannot be loaded: {error}") from None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.lazy:
            from ..adapters.errors import did_you_mean

            ctx.fail(f"There is no command {args[0]!r}.{did_you_mean(args[0], self.lazy)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.summary) for name, command in self.lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from ..adapters.errors import FarandoleError

            if isinstance(error, FarandoleError):
                raise click.ClickException(str(error)) from None
            raise
