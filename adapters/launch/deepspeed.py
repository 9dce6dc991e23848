"""The launcher of DeepSpeed."""

from __future__ import annotations

import shlex

from ..errors import OptionError
from .start import Job, program_of
from .variables import Variables

VARIABLES = Variables("deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK")
MARK = "CROSS_RANK"  # set beside RANK and WORLD_SIZE, which other launchers set too


def start(job: Job) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the variables that start a job's workers."""
    module = ["--module"] if job.program[0] == "-m" else []
    program = job.program[1:] if module else job.program
    if job.remote:
        lines = "".join(f"{host.name} slots={host.slots}\\n" for host in job.hosts)
        line = shlex.join(["deepspeed", "--hostfile", "hostfile", "--no_local_rank", *module, *program])
        raise OptionError(f"deepspeed reads hosts from a file. Run:\n  printf '{lines}' > hostfile\n  {line}")
    argv = [program_of("deepspeed", job), "--num_gpus", str(job.workers), "--master_port", str(job.port)]
    argv.append("--no_local_rank")
    return [*argv, *module, *program], {}
