"""The commands `farandole checkpoint info`, `export` and `convert`."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from ...adapters.checkpoint.storage import Storage
from ...adapters.errors import CheckpointError, OptionError
from .look import describe, look, look_inside, newest
from .places import Kind, kind_of, refuse_existing, refuse_untrusted, require

_INSTALL = "pip install 'farandole[torch]'"
_INSTALL_DEEPSPEED = "pip install 'farandole[deepspeed]' --no-build-isolation"
_WRITERS = {"deepspeed": "DeepSpeed", "dcp": "torch.distributed.checkpoint"}

# Options of `convert` by source and target format; any other combination is refused.
_OPTIONS: dict[tuple[Kind, Kind], frozenset[str]] = {
    ("farandole", "deepspeed"): frozenset({"stage", "workers", "bf16"}),
    ("farandole", "dcp"): frozenset(),
    ("deepspeed", "farandole"): frozenset({"trust", "optimizer", "scheduler", "progress"}),
    ("dcp", "farandole"): frozenset({"trust", "key", "tied", "progress"}),
}


@click.group()
def checkpoint() -> None:
    """Show what is in a checkpoint; convert it from and to others."""


@checkpoint.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--verify", is_flag=True, help="Read all files, and compare their checksums.")
@click.option("--all", "show_all", is_flag=True, help="List all tensors.")
def info(path: str, as_json: bool, verify: bool, show_all: bool) -> None:
    """Show the checkpoint at PATH, or all checkpoints in that folder.

    PATH is a folder, or a URL of fsspec. Only the manifest is read, unless --verify is given. The exit code is 1 if the
    checkpoint is not whole, or if none in the folder is.
    """
    from .info import print_many, print_one

    kind = kind_of(path)
    if kind == "farandole":
        found = look(Storage(path), verify)
        if as_json:
            click.echo(json.dumps(describe(found), indent=2))
        else:
            print_one(found, verify, show_all)
        sys.exit(0 if found.whole else 1)
    if kind is not None:
        raise CheckpointError(
            f"{path} was written by {_WRITERS[kind]}: farandole checkpoint convert {path} OUT --to farandole --trust"
        )
    looks = look_inside(Storage(path), verify)
    if not looks:
        raise _no_checkpoint(path)
    latest = newest(looks)
    if as_json:
        listed = {"latest": latest and latest.location, "checkpoints": [describe(found) for found in looks]}
        click.echo(json.dumps(listed, indent=2))
    else:
        print_many(looks)
    sys.exit(1 if latest is None else 0)


@checkpoint.command()
@click.argument("path")
@click.argument("out", metavar="OUT.safetensors")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Convert floating-point tensors to it.  [default: as they are]",
)
def export(path: str, out: str, dtype: str | None) -> None:
    """Write the model's weights to one safetensors file.

    All of the model's state: parameters in the precision that the optimizer updates, buffers, and tied parameters under
    all of their names. The file must fit in memory: the safetensors library writes it as a whole.
    """
    _expect_ours(path)
    require("torch", "safetensors", fix=_INSTALL)
    from .export import export_safetensors

    count, left_out = export_safetensors(path, out, dtype)
    for name in left_out:
        click.echo(f"Left out {name!r}: it is not a tensor.", err=True)
    click.echo(f"{out}: {count} tensors")


@checkpoint.command()
@click.argument("path")
@click.argument("out")
@click.option("--to", "to", required=True, type=click.Choice(["farandole", "deepspeed", "dcp"]), help="The format.")
@click.option("--stage", type=click.IntRange(1, 3), help="The ZeRO stage at which DeepSpeed will load it.")
@click.option("--workers", type=click.IntRange(1), help="Number of workers that DeepSpeed will load it on.")
@click.option("--bf16", is_flag=True, help="DeepSpeed will compute in bf16, not in float32.")
@click.option("--trust", is_flag=True, help="Read a format that may run its author's code.")
@click.option("--optimizer", metavar="CLASS", help="Its optimizer's class.  [default: found from its settings]")
@click.option("--scheduler", metavar="CLASS", help="Its scheduler's class; none leaves its state out.")
@click.option("--progress", nargs=2, type=click.IntRange(0), metavar="EPOCH STEP", help="Its position in the data.")
@click.option("--key", help="The key of the model's state, if it holds more.")
@click.option("--tied", multiple=True, metavar="NAME=FIRST", help="A parameter that the model has by two names.")
def convert(path: str, out: str, to: Kind, **options: Any) -> None:
    """Convert the checkpoint at PATH from or to another format.

    \b
    --to deepspeed  a folder that plain DeepSpeed loads, model, optimizer and
                    scheduler, at this --stage and on this number of --workers
    --to dcp        a folder that torch.distributed.checkpoint loads, with the
                    model's state, and nothing else
    --to farandole  a checkpoint that any strategy loads, from either of those;
                    DeepSpeed's with optimizer and scheduler

    Files of DeepSpeed and torch.distributed.checkpoint contain pickles, which may run code: --trust says that you know
    their author. A checkpoint without optimizer state loads with a warning, and the optimizer stays as it is.
    """
    kind = kind_of(path)
    if kind is None:
        raise _no_checkpoint(path)
    _check_options(path, kind, to, options)
    if kind == "farandole":
        _convert_ours(path, out, to, options)
    else:
        refuse_untrusted(path, options["trust"])
        refuse_existing(out)
        _convert_theirs(path, out, kind, options)


def _convert_ours(path: str, out: str, to: Kind, options: dict[str, Any]) -> None:
    require("torch", fix=_INSTALL)
    if to == "dcp":
        from .to_dcp import write_dcp

        click.echo(f"{out}: {write_dcp(path, out)} entries. Load it with torch.distributed.checkpoint.load")
        return
    stage, workers = options["stage"], options["workers"]
    if stage is None or workers is None:
        raise OptionError("--to deepspeed needs --stage and --workers, which DeepSpeed's files are made for")
    require("deepspeed", fix=_INSTALL_DEEPSPEED)
    from .to_deepspeed import write_deepspeed

    write_deepspeed(path, out, stage, workers, options["bf16"])
    click.echo(f"{out}: for ZeRO stage {stage} on {workers} workers. Load it with engine.load_checkpoint({out!r})")


def _convert_theirs(path: str, out: str, kind: Kind, options: dict[str, Any]) -> None:
    require("torch", fix=_INSTALL)
    if kind == "dcp":
        from .from_dcp import convert_dcp

        count = convert_dcp(path, out, options["key"], options["tied"], options["progress"])
        click.echo(f"{out}: {count} tensors, without optimizer state")
    else:
        require("deepspeed", fix=_INSTALL_DEEPSPEED)
        from .from_deepspeed import convert_deepspeed

        for line in convert_deepspeed(path, out, options["optimizer"], options["scheduler"], options["progress"]):
            click.echo(line)


def _check_options(path: str, kind: Kind, to: Kind, options: dict[str, Any]) -> None:
    if kind == to:
        raise OptionError(f"{path} is in this format already: there is nothing to convert")
    if (kind, to) not in _OPTIONS:
        raise OptionError(f"{path} was written by {_WRITERS[kind]}: convert it --to farandole first, then --to {to}")
    given = {name for name, value in options.items() if value not in (None, False, ())}
    for name in sorted(given - _OPTIONS[kind, to]):
        raise OptionError(f"--{name} has no effect from {kind} to {to}: leave it out")


def _expect_ours(path: str) -> None:
    kind = kind_of(path)
    if kind is None:
        raise _no_checkpoint(path)
    if kind != "farandole":
        raise OptionError(f"{path} was written by {_WRITERS[kind]}: convert it --to farandole first")


def _no_checkpoint(path: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a checkpoint: it has no manifest.json, no .metadata and no files of DeepSpeed"
    )
