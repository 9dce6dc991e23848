"""The launcher of DeepSpeed."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import sys
from pathlib import Path

from ..errors import OptionError
from .start import Job, program_of
from .variables import Variables

VARIABLES = Variables("deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK")
MARK = "CROSS_RANK"  # set beside RANK and WORLD_SIZE, which other launchers set too


def drop_local_rank_argument() -> None:
    """Take back the `--local_rank=N` that the deepspeed launcher puts before a script's own arguments.

    The same number is in the environment, where `detect_launch` reads it. A script that speaks of local_rank itself,
    as those do that declare the argument, keeps it.
    """
    rank = os.environ.get("LOCAL_RANK")
    if MARK not in os.environ or sys.argv[1:2] != [f"--local_rank={rank}"]:
        return
    script = getattr(sys.modules.get("__main__"), "__file__", None) or sys.argv[0]
    with contextlib.suppress(OSError):
        if not re.search(r"local[_-]rank", Path(script).read_text(errors="replace")):
            del sys.argv[1]


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
