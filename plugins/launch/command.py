"""The command line that starts a strategy's workers: its engine's own launcher, with what that launcher leaves out."""

from __future__ import annotations

import os
import shlex
import shutil
import site
import socket
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from ...adapters.errors import EngineUnavailableError, LauncherError, OptionError
from ...adapters.registry import STRATEGY_VARIABLE, StrategyRow, strategy_row
from . import local_workers
from .hosts import LOOPBACK, Host, parse_hosts, place
from .installed import check_installed
from .ports import check_port, check_ports, consecutive_ports, hold_ports, port_of

_DEFAULT_PORT = 29500  # torch.distributed's and DeepSpeed's
_TENSORFLOW_PORT = 2222  # of TensorFlow's own examples

# A process that has one of these is itself a worker, or was told so by a launcher that is gone. Workers started from it
# would inherit them beside what their own launcher says, and the two would contradict each other.
_IDENTITY = (
    "RANK",
    "WORLD_SIZE",
    "HOROVOD_RANK",
    "HOROVOD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "TF_CONFIG",
)


@dataclass(frozen=True)
class Command:
    """What to execute: the arguments, and the variables to add to the environment.

    is_worker: whether it is the one worker itself, without a launcher.
    held: what keeps the port that was found for the job from others: open for as long as this object.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    is_worker: bool = False
    held: tuple[socket.socket, ...] = ()

    def __str__(self) -> str:
        """The command as a line for a POSIX shell."""
        added = [f"{name}={shlex.quote(value)}" for name, value in self.env.items()]
        return " ".join([*added, shlex.join(self.argv)])


@dataclass(frozen=True)
class _Job:
    row: StrategyRow
    workers: int
    program: tuple[str, ...]
    hosts: tuple[Host, ...]
    port: int | None
    start_deadline: float | None
    python: str

    @property
    def on_tensorflow(self) -> bool:
        return any(requirement.module == "tensorflow" for requirement in self.row.requirements)

    @property
    def remote(self) -> bool:
        return any(host.name not in LOOPBACK for host in self.hosts)

    @property
    def workers_per_host(self) -> int:
        return max((host.slots for host in self.hosts), default=self.workers)


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
        port: the TCP port that the workers meet at, or the first of one for each; by default free ones.
        start_deadline: seconds that workers wait for each other at the start, where their launcher is "tf_config".
        python: the interpreter to run them with; its environment's launcher is taken.

    Raises:
        UnknownStrategyError: no such strategy.
        OptionError: a number of workers, hosts, a port or a deadline that this launcher cannot serve; the message says
            what can.
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
        raise OptionError(f"strategy {strategy!r} has no start deadline of its own: leave out --start-deadline")
    # DeepSpeed's default is one fixed port, which a second job on the machine would share.
    held = tuple(hold_ports(1)) if row.launcher == "deepspeed" and port is None else ()
    job = _Job(row, workers, tuple(program), placed, port_of(held[0]) if held else port, start_deadline, python)
    argv, env = _LAUNCHERS[row.launcher](job)
    env["PYTHONUNBUFFERED"] = "1"  # lines of several workers must not wait for each other in buffers
    if workers > 1:
        # One worker takes what its framework takes by default; several would each take the whole machine.
        threads = str(max(1, _cores() // job.workers_per_host))
        env["OMP_NUM_THREADS"] = threads
        if job.on_tensorflow:
            env["TF_NUM_INTRAOP_THREADS"] = env["TF_NUM_INTEROP_THREADS"] = threads  # its pools ask OpenMP nothing
            env["TF_CPP_MIN_LOG_LEVEL"] = "1"  # each worker's 15 lines on how it started hide what went wrong
    added = {name: value for name, value in env.items() if not os.environ.get(name)}
    return Command(tuple(argv), {STRATEGY_VARIABLE: strategy, **added}, is_worker=row.launcher is None, held=held)


def _plain(job: _Job) -> tuple[list[str], dict[str, str]]:
    name = job.row.name
    several = "tf_multiworker" if job.on_tensorflow else "ddp"
    if job.workers > 1:
        raise OptionError(f"strategy {name!r} is one process: leave out -n {job.workers}, or take --strategy {several}")
    if job.hosts or job.port is not None:
        given = "--hosts" if job.hosts else "--port"
        raise OptionError(f"strategy {name!r} is one process on this machine: leave out {given}")
    return [job.python, *job.program], {}


def _torchrun(job: _Job) -> tuple[list[str], dict[str, str]]:
    if job.remote:
        raise OptionError(
            "torchrun starts workers on its own machine only. Run each of these lines on the host named before it:\n"
            + "\n".join(f"  {host.name}: {_torchrun_line(job, node)}" for node, host in enumerate(job.hosts))
        )
    # --nnodes is written out because torchrun reads PET_NNODES before its default.
    if job.port is None:
        # Without --local-addr workers look for their own machine under its host name, which need not resolve.
        where = ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        where = ["--master-addr", "127.0.0.1", "--master-port", str(job.port)]
    launcher = [job.python, "-m", "torch.distributed.run", "--nnodes", "1", *where]
    # torchrun waits 30 s for workers that are told to end but sit in a collective, where Python handles no signal.
    env = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    return [*launcher, "--nproc-per-node", str(job.workers), *_escaped(job.program)], env


def _escaped(program: tuple[str, ...]) -> list[str]:
    """torchrun takes arguments for `string.Template`s, and would make `$` of `$$` and a rank of `${local_rank}`."""
    return [word.replace("$", "$$") for word in program]


def _torchrun_line(job: _Job, node: int) -> str:
    arguments = {
        "--nnodes": len(job.hosts),
        "--node-rank": node,
        "--nproc-per-node": job.hosts[node].slots,
        "--master-addr": job.hosts[0].name,
        "--master-port": job.port or _DEFAULT_PORT,
    }
    words = [word for name, value in arguments.items() for word in (name, str(value))]
    return shlex.join(["torchrun", *words, *_escaped(job.program)])


def _horovodrun(job: _Job) -> tuple[list[str], dict[str, str]]:
    if job.port is not None:
        raise OptionError("horovodrun finds free ports by itself: leave out --port")
    argv = [_program("horovodrun", job), "-np", str(job.workers)]
    if shutil.which("mpirun") is None:
        # Else it would import every framework that Horovod was built for, to ask whether it was built with MPI.
        argv.append("--gloo")
    if job.hosts:
        argv += ["-H", ",".join(f"{host.name}:{host.slots}" for host in job.hosts)]
    if not job.remote:
        # The cache remembers ssh checks, and is one file under the home folder that concurrent jobs would overwrite.
        argv.append("--disable-cache")
    return [*argv, job.python, *job.program], {}


def _deepspeed(job: _Job) -> tuple[list[str], dict[str, str]]:
    module = ["--module"] if job.program[0] == "-m" else []
    program = job.program[1:] if module else job.program
    if job.remote:
        lines = "".join(f"{host.name} slots={host.slots}\\n" for host in job.hosts)
        start = shlex.join(["deepspeed", "--hostfile", "hostfile", "--no_local_rank", *module, *program])
        raise OptionError(f"deepspeed reads hosts from a file. Run:\n  printf '{lines}' > hostfile\n  {start}")
    argv = [_program("deepspeed", job), "--num_gpus", str(job.workers), "--master_port", str(job.port)]
    argv.append("--no_local_rank")
    return [*argv, *module, *program], {}


def _tf_config(job: _Job) -> tuple[list[str], dict[str, str]]:
    if job.remote:
        raise OptionError(
            "TensorFlow has no launcher for several machines. Run each of these lines on the host named before it:\n"
            + "\n".join(f"  {line}" for line in _tf_config_lines(job))
        )
    if job.port is not None:
        check_ports(job.workers, job.port)
    # -P: a folder named like a package, where the command is typed, is not that package.
    argv = [job.python, "-P", "-m", local_workers.__name__, "-n", str(job.workers)]
    if job.port is not None:
        argv += ["--port", str(job.port)]
    if job.start_deadline is not None:
        argv += ["--start-deadline", f"{job.start_deadline:g}"]
    return [*argv, *job.program], {}


def _tf_config_lines(job: _Job) -> list[str]:
    """One for each worker: TF_CONFIG tells it which one it is."""
    first = job.port or _TENSORFLOW_PORT
    names, addresses = [], []
    for host in job.hosts:
        names += [host.name] * host.slots
        addresses += [f"{host.name}:{port}" for port in consecutive_ports(host.slots, first)]
    told = {STRATEGY_VARIABLE: job.row.name}
    if job.start_deadline is not None:
        told[local_workers.START_DEADLINE_VARIABLE] = f"{job.start_deadline:g}"
    commands = [
        Command(("python", *job.program), {**told, "TF_CONFIG": local_workers.tf_config(addresses, index)})
        for index in range(len(names))
    ]
    return [f"{name}: {command}" for name, command in zip(names, commands, strict=True)]


_LAUNCHERS: Mapping[str | None, Callable[[_Job], tuple[list[str], dict[str, str]]]] = {
    None: _plain,
    "torchrun": _torchrun,
    "horovodrun": _horovodrun,
    "deepspeed": _deepspeed,
    "tf_config": _tf_config,
}


def find_launcher(name: str, python: str = sys.executable) -> str | None:
    """Return the path of a launcher: the one of the interpreter's environment, else the first on `PATH`."""
    return shutil.which(name, path=os.pathsep.join(map(str, script_folders(python)))) or shutil.which(name)


def script_folders(python: str = sys.executable) -> tuple[Path, ...]:
    """Return the folders that the programs of an interpreter's environment are installed into."""
    folders = [Path(python).parent]
    if python == sys.executable:
        folders.append(Path(sysconfig.get_path("scripts")))
        if site.ENABLE_USER_SITE:
            folders.append(Path(sysconfig.get_path("scripts", sysconfig.get_preferred_scheme("user"))))
    return tuple(folders)


def _program(name: str, job: _Job) -> str:
    path = find_launcher(name, job.python)
    if path is None:
        fix = job.row.requirements[-1].fix
        raise EngineUnavailableError(
            f"strategy {job.row.name!r} is started by {name}, which is neither beside {job.python} nor on PATH. "
            f"Mend it with: {fix}"
        )
    return path


def _refuse_identity() -> None:
    found = [name for name in _IDENTITY if os.environ.get(name, "").strip()]
    if found:
        said = ", ".join(f"{name}={os.environ[name]:.40}" for name in found)
        unset = " ".join(f"-u {name}" for name in found)
        raise LauncherError(
            f"{said} in the environment: this process is a worker itself, and those that it starts would be told two "
            f"stories. If that is left over, start with: env {unset} farandole run …"
        )


def _cores() -> int:
    """Physical cores that this process may use, which is also what frameworks count."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)
