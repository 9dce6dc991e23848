"""A process's rank and world size, read from the variables of each launcher."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from unittest.mock import ANY

import pytest

from farandole.adapters import LauncherError, Worker, detect_launch

Environ = dict[str, str]


def gloo(rank: int, size: int, local_rank: int, local_size: int, node: int, nodes: int) -> Environ:
    """As horovodrun sets it over Gloo (horovod/runner/gloo_run.py)."""
    return {
        "HOROVOD_HOSTNAME": f"host{node}",
        "HOROVOD_RANK": f"{rank}",
        "HOROVOD_SIZE": f"{size}",
        "HOROVOD_LOCAL_RANK": f"{local_rank}",
        "HOROVOD_LOCAL_SIZE": f"{local_size}",
        "HOROVOD_CROSS_RANK": f"{node}",
        "HOROVOD_CROSS_SIZE": f"{nodes}",
        "HOROVOD_GLOO_RENDEZVOUS_ADDR": "10.0.0.1",
        "HOROVOD_GLOO_RENDEZVOUS_PORT": "64237",
        "HOROVOD_CONTROLLER": "gloo",
        "HOROVOD_CPU_OPERATIONS": "gloo",
        "HOROVOD_GLOO_IFACE": "lo",
    }


def open_mpi(rank: int, size: int, local_rank: int, local_size: int) -> Environ:
    """As Open MPI's mpirun sets it, which horovodrun starts where Horovod has MPI."""
    return {
        "OMPI_COMM_WORLD_RANK": f"{rank}",
        "OMPI_COMM_WORLD_SIZE": f"{size}",
        "OMPI_COMM_WORLD_LOCAL_RANK": f"{local_rank}",
        "OMPI_COMM_WORLD_LOCAL_SIZE": f"{local_size}",
        "OMPI_COMM_WORLD_NODE_RANK": f"{local_rank}",  # a rank within the node, despite its name
        "OMPI_UNIVERSE_SIZE": f"{size}",
    }


def torchrun(rank: int, size: int, local_rank: int, local_size: int, node: int) -> Environ:
    """As torch.distributed.run sets it (torch/distributed/elastic/agent/server/local_elastic_agent.py)."""
    return {
        "RANK": f"{rank}",
        "WORLD_SIZE": f"{size}",
        "LOCAL_RANK": f"{local_rank}",
        "LOCAL_WORLD_SIZE": f"{local_size}",
        "GROUP_RANK": f"{node}",
        "GROUP_WORLD_SIZE": f"{size // local_size}",
        "ROLE_RANK": f"{rank}",
        "ROLE_WORLD_SIZE": f"{size}",
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29611",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def deepspeed(rank: int, size: int, local_rank: int, local_size: int, node: int) -> Environ:
    """As deepspeed sets it (deepspeed/launcher/launch.py)."""
    return {
        "RANK": f"{rank}",
        "WORLD_SIZE": f"{size}",
        "LOCAL_RANK": f"{local_rank}",
        "LOCAL_SIZE": f"{local_size}",
        "CROSS_RANK": f"{node}",
        "CROSS_SIZE": f"{size // local_size}",
        "MASTER_ADDR": "10.0.0.1",
        "MASTER_PORT": "29500",
    }


def plain(rank: int, size: int, **others: str) -> Environ:
    return {"RANK": f"{rank}", "WORLD_SIZE": f"{size}", **others}


def sbatch(tasks: int, per_node: str = "2(x2)", nodes: str = "gpu[003-004]") -> Environ:
    """What Slurm sets in a batch script; srun's variables come on top."""
    return {
        "SLURM_JOB_ID": "200505",
        "SLURM_NTASKS": f"{tasks}",
        "SLURM_NPROCS": f"{tasks}",
        "SLURM_TASKS_PER_NODE": per_node,
        "SLURM_JOB_NODELIST": nodes,
        "SLURM_NODELIST": nodes,
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
    }


def srun(
    rank: int, size: int, local_rank: int, node: int, per_node: str = "2(x2)", nodes: str = "gpu[003-004]"
) -> Environ:
    return sbatch(size, per_node, nodes) | {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": f"{size}",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_PROCID": f"{rank}",
        "SLURM_LOCALID": f"{local_rank}",
        "SLURM_NODEID": f"{node}",
    }


TF_CONFIG = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 1}}'
ELASTIC = {"HOROVOD_ELASTIC": "1"}
MASTER = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
NUMBERS = (3, 4, 1, 2, 1)  # the last worker of two machines with two each
ALONE = (0, 1, 0, 1, 0)
HERE = ("10.0.0.1", 1234)
FIRST_NODE = ("gpu003", ANY)  # with a port of Slurm's job and step, see below
BY_JOB = {name: value for name, value in srun(3, 4, 1, 1).items() if name != "SLURM_STEP_TASKS_PER_NODE"}
BY_HAND = plain(3, 4, LOCAL_RANK="1", LOCAL_WORLD_SIZE="2")


@pytest.mark.parametrize(
    ("environ", "launcher", "numbers", "address"),
    [
        pytest.param({}, "none", ALONE, None, id="nothing"),
        pytest.param(MASTER, "none", ALONE, None, id="an address alone is no launcher"),
        pytest.param({"RANK": "", "WORLD_SIZE": " "}, "none", ALONE, None, id="empty is unset"),
        pytest.param(gloo(3, 4, 1, 2, 1, 2), "horovodrun", NUMBERS, None, id="horovodrun"),
        pytest.param(gloo(0, 1, 0, 1, 0, 1), "horovodrun", ALONE, None, id="horovodrun -np 1"),
        pytest.param(gloo(3, 4, 1, 2, 1, 2) | ELASTIC, "horovodrun", NUMBERS, None, id="horovodrun, elastic"),
        pytest.param(open_mpi(3, 4, 1, 2), "openmpi", NUMBERS, None, id="mpirun, or horovodrun over MPI"),
        pytest.param(open_mpi(3, 4, 1, 2) | MASTER, "openmpi", NUMBERS, HERE, id="mpirun -x MASTER_ADDR"),
        pytest.param(torchrun(3, 4, 1, 2, 1), "torchrun", NUMBERS, ("127.0.0.1", 29611), id="torchrun"),
        pytest.param(deepspeed(3, 4, 1, 2, 1), "deepspeed", NUMBERS, ("10.0.0.1", 29500), id="deepspeed"),
        pytest.param(plain(3, 4) | MASTER, "environment", (3, 4, 0, 1, 3), HERE, id="one in each container"),
        pytest.param(plain(0, 1), "environment", ALONE, None, id="one by hand"),
        pytest.param(BY_HAND | {"NODE_RANK": "1"}, "environment", NUMBERS, None, id="all by hand"),
        pytest.param(BY_HAND, "environment", NUMBERS, None, id="the node follows"),
        pytest.param(plain(1, 2, LOCAL_RANK="1"), "environment", (1, 2, 1, 2, 0), None, id="one machine by default"),
        pytest.param({"TF_CONFIG": TF_CONFIG}, "tf_config", (1, 2, 0, 1, 1), ("a", 2222), id="TF_CONFIG"),
        pytest.param(srun(3, 4, 1, 1), "slurm", NUMBERS, FIRST_NODE, id="srun"),
        pytest.param(srun(4, 5, 0, 2, "2(x2),1"), "slurm", (4, 5, 0, 1, 2), FIRST_NODE, id="srun, uneven nodes"),
        pytest.param(srun(3, 4, 1, 1) | MASTER, "slurm", NUMBERS, HERE, id="srun with an address of the user's"),
        pytest.param(BY_JOB, "slurm", NUMBERS, FIRST_NODE, id="srun, tasks per node of the job"),
        pytest.param(sbatch(1, "1", "gpu003"), "none", ALONE, None, id="sbatch with one task"),
        pytest.param(srun(1, 2, 0, 1) | torchrun(3, 4, 1, 2, 1), "torchrun", NUMBERS, ANY, id="torchrun in srun"),
        pytest.param(sbatch(2) | torchrun(3, 4, 1, 2, 1), "torchrun", NUMBERS, ANY, id="torchrun in sbatch"),
        pytest.param(sbatch(4) | gloo(3, 4, 1, 2, 1, 2), "horovodrun", NUMBERS, None, id="horovodrun in sbatch"),
        pytest.param(srun(0, 1, 0, 0) | gloo(3, 4, 1, 2, 1, 2), "horovodrun", NUMBERS, None, id="horovodrun in srun"),
        pytest.param(sbatch(4) | open_mpi(3, 4, 1, 2), "openmpi", NUMBERS, None, id="mpirun in sbatch"),
        pytest.param(sbatch(4) | deepspeed(3, 4, 1, 2, 1), "deepspeed", NUMBERS, ANY, id="deepspeed in sbatch"),
        pytest.param(gloo(3, 4, 1, 2, 1, 2) | plain(3, 4) | MASTER, "horovodrun", NUMBERS, HERE, id="two that agree"),
        pytest.param(
            plain(1, 2) | {"TF_CONFIG": TF_CONFIG}, "environment", (1, 2, 0, 1, 1), None, id="TF_CONFIG agrees"
        ),
    ],
)
def test_each_launcher_is_understood(
    environ: Environ, launcher: str, numbers: tuple[int, ...], address: tuple[str, int] | None
) -> None:
    launch = detect_launch(environ)
    assert (launch.launcher, launch.worker) == (launcher, Worker(*numbers))
    assert launch.address == address


def test_only_rank_0_is_main() -> None:
    assert [detect_launch(torchrun(rank, 2, rank, 2, 0)).worker.is_main for rank in range(2)] == [True, False]


def test_the_environment_of_this_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("HOROVOD_", "OMPI_", "SLURM_", "TF_CONFIG", "TORCHELASTIC_")):
            monkeypatch.delenv(name)
    for name, value in deepspeed(1, 2, 1, 2, 0).items():
        monkeypatch.setenv(name, value)
    assert detect_launch().worker == Worker(1, 2, 1, 2, 0)


def refusal(environ: Mapping[str, str]) -> str:
    with pytest.raises(LauncherError) as caught:
        detect_launch(environ)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


HVD = gloo(0, 2, 0, 2, 0, 1)
TF = {"TF_CONFIG": TF_CONFIG}
TF_OF_3 = {"TF_CONFIG": TF_CONFIG.replace('"b:2222"', '"b:1", "c:1"')}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (HVD | plain(1, 2), ["HOROVOD_RANK=0, HOROVOD_SIZE=2", "RANK=1, WORLD_SIZE=2"]),
        (HVD | plain(0, 4), ["HOROVOD_RANK=0, HOROVOD_SIZE=2", "RANK=0, WORLD_SIZE=4"]),
        (HVD | open_mpi(1, 2, 1, 2), ["HOROVOD_RANK=0", "OMPI_COMM_WORLD_RANK=1, OMPI_COMM_WORLD_SIZE=2"]),
        (open_mpi(0, 2, 0, 2) | torchrun(0, 1, 0, 1, 0), ["OMPI_COMM_WORLD_SIZE=2", " RANK=0, WORLD_SIZE=1"]),
        (deepspeed(0, 2, 0, 2, 0) | TF, [" RANK=0, WORLD_SIZE=2", "TF_CONFIG (task 1 of 2)"]),
        (plain(1, 2) | HVD | {"HOROVOD_RANK": "1"} | TF_OF_3, ["HOROVOD_RANK=1", "TF_CONFIG (task 1 of 3)"]),
    ],
)
def test_a_contradiction_names_both_sides(environ: Environ, said: list[str]) -> None:
    message = refusal(environ)
    assert all(part in message for part in said), message
    assert "contradicts itself" in message
    assert "unset" in message


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"RANK": "0"}, ["RANK=0 is set but WORLD_SIZE is not"]),
        ({"WORLD_SIZE": "2"}, ["WORLD_SIZE=2 is set but RANK is not"]),
        ({"RANK": "0", "WORLD_SIZE": ""}, ["RANK=0 is set but WORLD_SIZE is not"]),
        ({"HOROVOD_RANK": "0"}, ["HOROVOD_RANK=0 is set but HOROVOD_SIZE is not"]),
        ({"HOROVOD_SIZE": "2"}, ["HOROVOD_SIZE=2 is set but HOROVOD_RANK is not"]),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, ["OMPI_COMM_WORLD_SIZE=2 is set but OMPI_COMM_WORLD_RANK is not"]),
        (sbatch(4), ["SLURM_NTASKS=4", "srun python"]),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"}, ["SLURM_NTASKS=4", "srun python"]),  # salloc
    ],
)
def test_what_is_there_in_part_only_names_what_is_missing(environ: Environ, said: list[str]) -> None:
    message = refusal(environ)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        (plain(0, 2) | {"RANK": "one"}, "RANK", "one"),
        (plain(0, 2) | {"WORLD_SIZE": "2.0"}, "WORLD_SIZE", "2.0"),
        (torchrun(0, 2, 0, 2, 0) | {"LOCAL_RANK": "x"}, "LOCAL_RANK", "x"),
        (torchrun(0, 2, 0, 2, 0) | {"GROUP_RANK": "x"}, "GROUP_RANK", "x"),
        (deepspeed(0, 2, 0, 2, 0) | {"LOCAL_SIZE": "all"}, "LOCAL_SIZE", "all"),
        (gloo(0, 2, 0, 2, 0, 1) | {"HOROVOD_CROSS_RANK": "-"}, "HOROVOD_CROSS_RANK", "-"),
        (plain(0, 2) | {"MASTER_ADDR": "a", "MASTER_PORT": "tcp"}, "MASTER_PORT", "tcp"),
        (srun(0, 4, 0, 0) | {"SLURM_PROCID": "x"}, "SLURM_PROCID", "x"),
        (srun(0, 4, 0, 0) | {"SLURM_STEP_NUM_TASKS": "4(x1)"}, "SLURM_STEP_NUM_TASKS", "4(x1)"),
        (sbatch(4) | {"SLURM_NTASKS": "many"}, "SLURM_NTASKS", "many"),
    ],
)
def test_what_is_no_number_is_named(environ: Environ, name: str, value: str) -> None:
    assert f"{name}={value!r} is not a whole number" in refusal(environ)


def test_blanks_around_a_number_are_no_fault() -> None:
    assert detect_launch(open_mpi(0, 2, 0, 2) | {"OMPI_COMM_WORLD_SIZE": " 2 "}).worker.world_size == 2


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        (plain(2, 2), ["rank 2 does not exist among 2 workers", "RANK=2, WORLD_SIZE=2"]),
        (plain(-1, 2), ["rank -1 does not exist among 2 workers", "RANK=-1"]),
        (plain(0, 0), ["rank 0 does not exist among 0 workers", "WORLD_SIZE=0"]),
        (plain(0, 0, LOCAL_RANK="0"), ["rank 0 does not exist among 0 workers", "WORLD_SIZE=0"]),
        (plain(0, 2, LOCAL_RANK="0", LOCAL_WORLD_SIZE="0"), ["local rank 0", "LOCAL_WORLD_SIZE=0"]),
        (plain(0, 2, LOCAL_RANK="0", LOCAL_WORLD_SIZE="4"), ["LOCAL_WORLD_SIZE=4", "WORLD_SIZE=2"]),
        (torchrun(0, 4, 2, 2, 0), ["local rank 2 does not exist among 2", "LOCAL_RANK=2, LOCAL_WORLD_SIZE=2"]),
        (gloo(4, 4, 0, 2, 0, 2), ["rank 4", "HOROVOD_RANK=4, HOROVOD_SIZE=4"]),
        (open_mpi(4, 4, 0, 2), ["rank 4", "OMPI_COMM_WORLD_RANK=4, OMPI_COMM_WORLD_SIZE=4"]),
        (deepspeed(0, 4, 5, 2, 0), ["local rank 5", "LOCAL_RANK=5, LOCAL_SIZE=2"]),
        (srun(4, 4, 0, 0), ["rank 4", "SLURM_PROCID=4, SLURM_STEP_NUM_TASKS=4"]),
        (srun(0, 4, 2, 0), ["local rank 2", "SLURM_LOCALID=2"]),
    ],
)
def test_a_rank_that_cannot_be_is_refused(environ: Environ, said: list[str]) -> None:
    message = refusal(environ)
    assert all(part in message for part in said), message


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-007,9],login1", "gpu003"),
        ("gpu[1,3]", "gpu1"),
        ("node-a-[01-04]", "node-a-01"),
        ("n[09-10].cluster,m1", "n09.cluster"),
        ("rack[0-1]_blade[2-5],login1", "rack0_blade2"),
    ],
)
def test_slurm_workers_meet_on_the_first_host(nodes: str, first: str) -> None:
    address = detect_launch(srun(3, 4, 1, 1, nodes=nodes)).address
    assert address is not None
    assert address[0] == first


def test_what_is_no_host_list_is_refused() -> None:
    assert "'[' is not a Slurm host list" in refusal(srun(0, 4, 0, 0, nodes="["))


def test_all_tasks_of_a_slurm_step_derive_one_port_and_other_steps_another() -> None:
    addresses = {detect_launch(srun(rank, 4, rank % 2, rank // 2)).address for rank in range(4)}
    assert len(addresses) == 1
    others = [{}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "200506"}]
    ports = {launch.address[1] for other in others if (launch := detect_launch(srun(0, 4, 0, 0) | other)).address}
    assert len(ports) == 3
    assert all(1024 < port < 32768 for port in ports)  # below the ports that Linux chooses


def test_slurm_without_a_host_list_tells_no_address() -> None:
    environ = {name: value for name, value in srun(0, 4, 0, 0).items() if not name.endswith("NODELIST")}
    assert detect_launch(environ).address is None


def test_importing_changes_no_arguments() -> None:
    """Also the deepspeed launcher's arguments, which a script may parse in a module that it imports later."""
    lines = "import sys; given = [*sys.argv]; import farandole.adapters; assert sys.argv == given, sys.argv"
    told = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2", "CROSS_RANK": "0"}
    subprocess.run([sys.executable, "-c", lines, "--local_rank=1"], env=told, check=True)
