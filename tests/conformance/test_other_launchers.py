"""A strategy reads its rank from any launcher: each engine under launchers that are not its default."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farandole.plugins.conformance.curves import read_curve
from farandole.plugins.conformance.framework import reference_curve
from farandole.plugins.conformance.jobs import WORKER, Outcome, run_conformance, write_specification
from farandole.plugins.conformance.reentry import DONE
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.conformance.variants import LOSS_BOUND
from farandole.plugins.launch.job import JobResult, run_marked

ASKED: dict[str, Any] = {"curves": [("clip", "float32")], "checks": ["collectives_do_what_they_say"]}


def judge(outcome: Outcome) -> None:
    curve = read_curve(outcome.path("curve-clip-float32.npz"))
    assert reference_curve("torch", "clip", "float32").loss_diff(curve) <= LOSS_BOUND["float32"]
    outcome.check("collectives_do_what_they_say")
    assert outcome.job.returncode == 0 and not outcome.job.survivors, outcome.job.describe()


@pytest.mark.parametrize("launched_for", ["ddp", "horovod"])
@pytest.mark.parametrize("strategy", ["ddp", "horovod", "deepspeed_zero_3"])
def test_an_engine_under_anothers_launcher(
    launched_for: str, strategy: str, tmp_path: Path, worker_servers: WorkerServers
) -> None:
    outcome = run_conformance(strategy, 2, tmp_path, launched_for=launched_for, servers=worker_servers, **ASKED)
    judge(outcome)


def test_a_model_that_goes_on_under_the_next_strategy(worker_servers: WorkerServers) -> None:
    program = [str(Path(__file__).with_name("same_model_program.py"))]
    job = worker_servers.run_program("ddp", 2, program, timeout=120)
    assert job.returncode == 0 and job.output.count(DONE) == 2, job.describe()


def environments(kind: str, port: int, other_port: int) -> list[dict[str, str]]:
    """Return the environments of two processes of one machine."""
    if kind == "tf_config":
        cluster = {"worker": [f"127.0.0.1:{port}", f"127.0.0.1:{other_port}"]}
        return [
            {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})}
            for rank in range(2)
        ]
    if kind == "slurm":
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost"}
        job = {"SLURM_JOB_ID": str(port), "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}
        return [{**step, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if kind == "openmpi":
        sizes = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
        names = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    else:
        sizes = {"WORLD_SIZE": "2", "LOCAL_SIZE": "2", "CROSS_RANK": "0"}
        names = ("RANK", "LOCAL_RANK")
    return [{**meeting, **sizes, **dict.fromkeys(names, str(rank))} for rank in range(2)]


KINDS = ("tf_config", "slurm", "openmpi", "deepspeed")
IN_EACH = """
import json, os, sys
from farandole.plugins.conformance.worker import main
for told, specification in zip(json.loads(sys.argv[1]), sys.argv[2:], strict=True):
    os.environ.update(told)
    main(specification)
    for name in told:
        del os.environ[name]
"""


@pytest.fixture(scope="module")
def in_environments(tmp_path_factory: pytest.TempPathFactory, free_ports: Any) -> tuple[Path, JobResult]:
    """Two processes that train under ddp in each kind of environment, one after the other."""
    folder = tmp_path_factory.mktemp("environments")
    specifications = [str(write_specification(folder / kind, "ddp", **ASKED)) for kind in KINDS]
    told = list(zip(*(environments(kind, *free_ports(2)) for kind in KINDS), strict=True))
    with ThreadPoolExecutor(2) as threads:
        started = [
            threads.submit(run_marked, [sys.executable, "-c", IN_EACH, json.dumps(each), *specifications], timeout=120)
            for each in told
        ]
        first, second = (each.result() for each in started)
    return folder, first if first.returncode != 0 else second


@pytest.mark.parametrize("kind", KINDS)
def test_ddp_in_an_environment(kind: str, in_environments: tuple[Path, JobResult]) -> None:
    """Slurm and Open MPI are not on this machine, but their variables can be set."""
    folder, job = in_environments
    judge(Outcome(job, folder / kind, 2))


def test_busy_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        specification = write_specification(tmp_path, "ddp", **ASKED)
        job = run_marked([sys.executable, "-m", WORKER, str(specification)], env=told, timeout=60)
    assert job.returncode != 0, job.describe()
    assert f"MASTER_PORT={port}" in job.output.splitlines()[-1], job.describe()
