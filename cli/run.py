"""`farandole run`: print the engine's launch command, and run it to its end."""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import click

from ..adapters.errors import OptionError, did_you_mean
from ..adapters.launch.hosts import parse_hosts
from ..plugins.launch.command import launch_command
from ..plugins.launch.parent import run_launcher


# Arguments after the script belong to the script.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-s", "--strategy", required=True, metavar="NAME", help="The engine: see `farandole strategies`.")
@click.option(
    "-n", "--workers", type=int, metavar="N", help="How many workers.  [default: 1, or as many as --hosts have slots]"
)
@click.option("--hosts", metavar="A:2,B:2", help="Machines and how many workers each takes.  [default: this machine]")
@click.option("--port", type=click.IntRange(1, 65535), metavar="P", help="TCP port to meet at.  [default: a free one]")
@click.option(
    "--start-deadline",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="How long workers of tf_multiworker wait for each other at the start.  [default: 60]",
)
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, as in `python -m`.")
@click.option("--dry-run", is_flag=True, help="Print the command and stop.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def run(
    strategy: str,
    workers: int | None,
    hosts: str | None,
    port: int | None,
    start_deadline: float | None,
    module: bool,
    dry_run: bool,
    program: tuple[str, ...],
) -> None:
    """Run SCRIPT on several workers, by the engine's launcher.

    It prints the command that you could type yourself (torchrun, horovodrun, deepspeed or plain python; for
    tf_multiworker a launcher that comes with Farandole), and runs it. Output and exit code are the launcher's, and
    signals are passed on to it. When a worker fails, the output ends with its traceback and a line that names it.
    Options stand before SCRIPT; everything after SCRIPT goes to SCRIPT.

    \b
    Examples:
      One process, the reference for all others
        farandole run --strategy local train.py --lr 0.1
      Two workers of PyTorch DDP on this machine
        farandole run --strategy ddp -n 2 train.py --lr 0.1
      Two workers of TensorFlow's MultiWorkerMirroredStrategy
        farandole run --strategy tf_multiworker -n 2 train.py
      A module instead of a script
        farandole run --strategy ddp -n 2 -m mypackage.train --lr 0.1
      Two workers of Horovod on each of two machines, by ssh
        farandole run --strategy horovod --hosts a:2,b:2 train.py
      Only show the command
        farandole run --strategy horovod -n 2 --dry-run train.py

    SCRIPT creates the strategy itself; `create_strategy()` without a name uses the one named here.
    """
    if workers is None:
        workers = sum(host.slots for host in parse_hosts(hosts)) if hosts else 1
    _check_program(module, program[0])
    command = launch_command(
        strategy,
        workers,
        ["-m", *program] if module else program,
        hosts=hosts,
        port=port,
        start_deadline=start_deadline,
    )
    if dry_run:
        click.echo(str(command))
    else:
        click.echo(str(command), err=True)
        sys.exit(run_launcher(command, workers))


def _check_program(module: bool, name: str) -> None:
    """Raise `OptionError` if there is nothing to run, instead of a traceback from each worker."""
    if module:
        package = name.split(".")[0]
        if importlib.util.find_spec(package) is None and PathFinder.find_spec(package, [os.getcwd()]) is None:
            raise OptionError(f"there is no module {package!r}, neither installed nor in {os.getcwd()}")
        return
    script = Path(name)
    if script.is_file() or (script / "__main__.py").is_file():
        return
    if script.is_dir():
        raise OptionError(f"{name} is a folder without a __main__.py: name a script in it")
    if not script.parent.is_dir():
        raise OptionError(f"there is no script {name}: the folder {script.parent} does not exist")
    near = did_you_mean(script.name, sorted(path.name for path in script.parent.glob("*.py")))
    raise OptionError(f"there is no script {name} in {script.parent.resolve()}.{near}")
