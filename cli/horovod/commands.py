"""The commands `farandole horovod build` and `farandole horovod install`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click


@click.group()
def horovod() -> None:
    """Build Horovod for the PyTorch and TensorFlow you have."""


def _options(command: Callable[..., None]) -> Callable[..., Any]:
    """Add the options that both commands share."""
    for option in reversed(
        (
            click.option(
                "--frameworks",
                metavar="NAMES",
                help="Support only these: torch, tensorflow, or torch,tensorflow.  [default: all that are installed]",
            ),
            click.option(
                "--mpi/--no-mpi", default=None, help="With MPI.  [default: where mpicxx and its headers are installed]"
            ),
            click.option(
                "--nccl/--no-nccl", default=None, help="With NCCL.  [default: where the framework is a CUDA build]"
            ),
            click.option(
                "--sdist",
                type=click.Path(exists=True, dir_okay=False, path_type=Path),
                help="Use this copy of the published source; nothing is downloaded.",
            ),
            click.option("--force", is_flag=True, help="Build even if a matching wheel is in the cache."),
            click.option("--verbose", is_flag=True, help="Show what pip, CMake and the compiler print."),
        )
    ):
        command = option(command)
    return command


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """End with the exit code of Ctrl-C, after the clean-up."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("Stopped. Nothing half-built is left.", err=True)
        sys.exit(130)


@horovod.command()
@_options
@_interruptible()
def build(**options: Any) -> None:
    """Build a wheel and keep it in the user's cache.

    The last line of the output is the path of the wheel; progress goes to standard error. A wheel that matches (same
    Python, PyTorch, TensorFlow, CUDA, NCCL, MPI and settings) is not built twice. FARANDOLE_CACHE_DIR moves the cache.
    """
    wheel, _ = _build(**options)
    click.echo(wheel)


@horovod.command()
@_options
@_interruptible()
def install(**options: Any) -> None:
    """Build a wheel unless one matches, install it into this environment, and import it."""
    from .installer import install as install_wheel
    from .progress import Reporter

    wheel, modules = _build(**options)
    with Reporter(verbose=options["verbose"]) as report:
        found = install_wheel(wheel, modules, report)
    for module in found:
        features = ", ".join(
            f"{name} {'yes' if built else 'no'}"
            for name, built in (("Gloo", module.gloo), ("MPI", module.mpi), ("NCCL", module.nccl))
        )
        click.echo(f"{module.name}: {features}  ({module.file})")
    click.echo("Next: farandole run --strategy horovod -n 2 train.py, or horovodrun -np 2 python train.py")


def _build(
    *,
    frameworks: str | None,
    mpi: bool | None,
    nccl: bool | None,
    sdist: Path | None,
    force: bool,
    verbose: bool,
) -> tuple[Path, tuple[str, ...]]:
    """Return the wheel, and its modules."""
    from .builder import build as build_wheel
    from .progress import Reporter
    from .target import plan

    names = [name.strip() for name in (frameworks or "").split(",") if name.strip()]
    chosen = plan(frameworks=names, mpi=mpi, nccl=nccl)
    with Reporter(verbose=verbose) as report:
        return build_wheel(chosen, report, sdist=sdist, force=force), chosen.target.modules
