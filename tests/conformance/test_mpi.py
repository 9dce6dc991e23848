"""Strategies one after the other under mpirun: MPI can be initialized once in a process.

These tests exist only where mpirun and a Horovod built with MPI do; `farandole doctor` says whether it was.
"""

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from farandole.plugins.conformance.reentry import DONE
from farandole.plugins.launch.job import JobResult, run_marked


def _mpi_built() -> bool:
    if shutil.which("mpirun") is None:
        return False
    import horovod.torch as hvd

    return bool(hvd.mpi_built())


RAISES = """
import sys, time
from farandole.adapters import create_strategy
with create_strategy(sys.argv[1]):
    pass
with create_strategy(sys.argv[1]) as strategy:
    strategy.barrier()
    if strategy.worker.rank == 1:
        print("raised at", time.time(), flush=True)
        raise ValueError("the mistake")
    strategy.barrier()
"""


def mpirun(arguments: list[str], **more: str) -> JobResult:
    root = ["--allow-run-as-root"] if os.getuid() == 0 else []
    argv = ["mpirun", *root, "--oversubscribe", "-np", "2", sys.executable, *arguments]
    return run_marked(argv, env={"OMP_NUM_THREADS": "1", **more}, timeout=120)


if _mpi_built():

    def test_after_each_other_under_mpirun(free_ports: Any) -> None:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0])}
        words = ["horovod", "ddp", "horovod!", "horovod"]
        job = mpirun(["-m", "farandole.plugins.conformance.reentry", "2", *words], **meeting)
        assert job.returncode == 0, job.describe()
        assert job.output.count(DONE) == 2, job.describe()
        assert not job.survivors, job.describe()

    def test_a_worker_that_raises_ends_the_job(tmp_path: Path) -> None:
        program = tmp_path / "raises.py"
        program.write_text(RAISES)
        job = mpirun([str(program), "horovod"])
        ended = time.time()
        assert job.returncode not in (0, None), job.describe()
        assert "ValueError: the mistake" in job.output, job.describe()
        assert ended - float(job.output.split("raised at ")[1].split()[0]) < 15, job.describe()
        assert not job.survivors, job.describe()
