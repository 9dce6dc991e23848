"""The command line that starts a strategy's workers: its engine's own launcher, with additional variables."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence

import psutil

from ...adapters.errors import LauncherError, OptionError
from ...adapters.launch import deepspeed, environment, horovodrun, tf_config, torchrun
from ...adapters.launch.hosts import parse_hosts, place
from ...adapters.launch.start import STRATEGY_VARIABLE, Command, Job
from ...adapters.registry import strategy_row
from . import local_workers
from .installed import check_installed
from .ports import check_port, check_ports, hold_ports, port_of

# A process with one of these is itself a worker, or a launcher that has ended left them. Workers started from it would
# inherit variables that contradict their own launcher's.
_IDENTITY = (
    "RANK",
    "WORLD_SIZE",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "TF_CONFIG",
)


_LAUNCHERS: Mapping[str | None, Callable[[Job], tuple[list[str], dict[str, str]]]] = {
    None: environment.start,
    "torchrun": torchrun.start,
    "horovodrun": horovodrun.start,
    "deepspeed": deepspeed.start,
    "tf_config": tf_config.start,
}


def launch_command(
    strategy: str,
    workers: int,
    program: Sequence[str],
    *,
    hosts: str | None = None,
    port: int | None = None,
    start_deadline: float | None = None,
    python: str = sys.executable,
) -> Command:
    """Return the command that runs `program` on `workers` workers of a strategy.

    Args:
        program: `["script.py", *arguments]` or `["-m", "module", *arguments]`.
        hosts: where to start them, as in `a:2,b:2`; by default on this machine.
        port: the TCP port at which workers meet, or the first of one for each; by default free ones.
        start_deadline: seconds that workers wait for each other at the start, if their launcher is "tf_config".
        python: the interpreter for the workers; its environment's launcher is used.

    Raises:
        UnknownStrategyError: no such strategy.
        OptionError: this launcher does not support a number of workers, hosts, a port or a deadline; the message says
            what it supports.
        LauncherError: the port is busy, or this process was itself started as a worker.
        EngineUnavailableError: the engine or its launcher is not installed, or not built for the framework.
    """
    row = strategy_row(strategy)
    if workers < 1:
        raise OptionError(f"cannot start {workers} workers: ask for at least one (-n 1)")
    placed = place(parse_hosts(hosts), workers) if hosts else ()
    _refuse_identity()
    if python == sys.executable:
        check_installed(row)
    if port is not None:
        check_port(port)
    if start_deadline is not None and row.launcher != "tf_config":
        raise OptionError(f"strategy {strategy!r} has no start deadline: leave out --start-deadline")
    # DeepSpeed's default is one fixed port, which a second job on the machine would use too.
    held = tuple(hold_ports(1)) if row.launcher == "deepspeed" and port is None else ()
    job = Job(
        strategy=row.name,
        on_tensorflow=any(requirement.module == "tensorflow" for requirement in row.requirements),
        fix=row.requirements[-1].fix,
        workers=workers,
        program=tuple(program),
        hosts=placed,
        port=port_of(held[0]) if held else port,
        start_deadline=start_deadline,
        python=python,
        local_workers=local_workers.__name__,
    )
    argv, env = _LAUNCHERS[row.launcher](job)
    if row.launcher == "tf_config" and port is not None:
        check_ports(workers, port)
    env["PYTHONUNBUFFERED"] = "1"  # otherwise the lines of several workers wait in buffers
    if workers > 1:
        # One worker keeps its framework's default; several would each use the whole machine.
        threads = str(max(1, _cores() // job.workers_per_host))
        env["OMP_NUM_THREADS"] = threads
        if job.on_tensorflow:
            env["TF_NUM_INTRAOP_THREADS"] = env["TF_NUM_INTEROP_THREADS"] = threads  # its pools ignore OpenMP's setting
            env["TF_CPP_MIN_LOG_LEVEL"] = "1"  # otherwise each worker's 15 lines about its start hide errors
    added = {name: value for name, value in env.items() if not os.environ.get(name)}
    return Command(tuple(argv), {STRATEGY_VARIABLE: strategy, **added}, is_worker=row.launcher is None, held=held)


def _refuse_identity() -> None:
    found = [name for name in _IDENTITY if os.environ.get(name, "").strip()]
    if found:
        said = ", ".join(f"{name}={os.environ[name]:.40}" for name in found)
        unset = " ".join(f"-u {name}" for name in found)
        raise LauncherError(
            f"{said} in the environment: this process is a worker itself, and those that it starts would inherit "
            f"conflicting rank variables. If they are left over, start with: env {unset} farandole run …"
        )


def _cores() -> int:
    """Physical cores that this process may use, as frameworks count them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)
