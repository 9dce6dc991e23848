"""torchrun, which comes with torch."""

from __future__ import annotations

import shlex

from ..errors import OptionError
from .start import Job
from .variables import Variables

VARIABLES = Variables("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
MARK = "TORCHELASTIC_RUN_ID"  # set beside RANK and WORLD_SIZE, which other launchers set too

_DEFAULT_PORT = 29500  # torch.distributed's


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables that start a job's workers."""
    if job.remote:
        raise OptionError(
            "torchrun starts workers on its own machine only. Run each of these lines on the host named before it:\n"
            + "\n".join(f"  {host.name}: {_line(job, node)}" for node, host in enumerate(job.hosts))
        )
    # --nnodes is written out because torchrun reads PET_NNODES before its default.
    if job.port is None:
        # Without --local-addr workers look for their own machine under its host name, which may not resolve.
        where = ["--standalone", "--local-addr", "127.0.0.1"]
    else:
        where = ["--master-addr", "127.0.0.1", "--master-port", str(job.port)]
    launcher = [job.python, "-m", "torch.distributed.run", "--nnodes", "1", *where]
    # torchrun waits 30 s after SIGTERM for workers that are in a collective, where Python handles no signal.
    env = {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}
    return [*launcher, "--nproc-per-node", str(job.workers), *_escaped(job.program)], env


def _escaped(program: tuple[str, ...]) -> list[str]:
    """Escape `$`: torchrun reads arguments as `string.Template`s, and would replace `$$` and `${local_rank}`."""
    return [word.replace("$", "$$") for word in program]


def _line(job: Job, node: int) -> str:
    arguments = {
        "--nnodes": len(job.hosts),
        "--node-rank": node,
        "--nproc-per-node": job.hosts[node].slots,
        "--master-addr": job.hosts[0].name,
        "--master-port": job.port or _DEFAULT_PORT,
    }
    words = [word for name, value in arguments.items() for word in (name, str(value))]
    return shlex.join(["torchrun", *words, *_escaped(job.program)])
