"""A strategy reads who it is from whatever started it: each engine under launchers that are not its own."""

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.launch.start import find_launcher
from farandole.plugins.conformance.jobs import WORKER, Outcome, write_specification
from farandole.plugins.conformance.variants import LOSS_BOUND
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.job import JobResult, run_marked

OF_LAUNCHER = {"torchrun": "ddp", "horovodrun": "horovod"}

SCRIPT = """
import sys
from farandole.plugins.conformance.worker import main
assert len(sys.argv) == 3, sys.argv
main(*sys.argv[1:])
"""


def specify(folder: Path, *strategies: str) -> list[str]:
    """Write what `launch_command` cannot be asked for: the work of other strategies than the one it starts."""
    asked: dict[str, Any] = {"curves": [("clip", "float32")], "checks": ["collectives_do_what_they_say"]}
    return [str(write_specification(folder / strategy, strategy, **asked)) for strategy in strategies]


def judge(job: JobResult, folder: Path, *strategies: str) -> None:
    from farandole.plugins.conformance.curves import read_curve
    from farandole.plugins.conformance.framework import reference_curve

    for strategy in strategies:
        outcome = Outcome(job, folder / strategy, 2)
        curve = read_curve(outcome.path("curve-clip-float32.npz"))
        assert reference_curve("torch", "clip", "float32").loss_diff(curve) <= LOSS_BOUND["float32"]
        outcome.check("collectives_do_what_they_say")
    assert job.returncode == 0, job.describe()
    assert not job.survivors, job.describe()


@pytest.mark.parametrize(
    ("launcher", "strategies"),
    [("torchrun", ("deepspeed_zero_3", "horovod")), ("horovodrun", ("deepspeed_zero_3", "ddp"))],
)
def test_engines_under_anothers_launcher(launcher: str, strategies: tuple[str, ...], tmp_path: Path) -> None:
    command = launch_command(OF_LAUNCHER[launcher], 2, ["-m", WORKER, *specify(tmp_path, *strategies)])
    judge(run_marked(command.argv, env=command.env, timeout=120), tmp_path, *strategies)


def test_engines_under_the_deepspeed_launcher(tmp_path: Path, free_ports: Any) -> None:
    strategies = ("deepspeed_zero_2", "ddp")
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    launcher = find_launcher("deepspeed")
    assert launcher is not None
    (port,) = free_ports(1)
    argv = [launcher, "--no_local_rank", "--num_accelerators", "2", "--master_port", str(port), str(script)]
    job = run_marked([*argv, *specify(tmp_path, *strategies)], env={"OMP_NUM_THREADS": "1"}, timeout=120)
    judge(job, tmp_path, *strategies)


def environments(kind: str, port: int, other_port: int) -> list[dict[str, str]]:
    """Return what two processes of one machine find in their environments."""
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


@pytest.mark.parametrize("kind", ["tf_config", "slurm", "openmpi", "deepspeed"])
def test_ddp_in_an_environment(kind: str, tmp_path: Path, free_ports: Any, by_hand: Any) -> None:
    """Slurm and Open MPI are not on this machine; what they tell their processes is."""
    told = environments(kind, *free_ports(2))
    worker = [sys.executable, "-m", WORKER, *specify(tmp_path, "ddp")]
    judge(run_marked(by_hand(told, worker), timeout=120), tmp_path, "ddp")


def test_busy_port_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        job = run_marked([sys.executable, "-m", WORKER, *specify(tmp_path, "ddp")], env=told, timeout=60)
    assert job.returncode != 0, job.describe()
    assert f"MASTER_PORT={port}" in job.output.splitlines()[-1], job.describe()
