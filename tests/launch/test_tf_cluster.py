"""TensorFlow's cluster, agreed on by real workers of real launchers; TensorFlow itself is not needed for it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.launch.start import find_launcher
from farandole.plugins.launch.installed import package
from farandole.plugins.launch.job import JobResult, run_marked

# Writes what this worker found into a file; argument 2 lists ranks that never call, argument 3 hides torch.
PROGRAM = """
import json, os, sys, time
from pathlib import Path
if "without_torch" in sys.argv:
    sys.modules["torch"] = None
from farandole.adapters.launch.detect import detect_launch
from farandole.adapters.tensorflow.cluster import cluster_addresses, tf_config
folder, silent = sys.argv[1], json.loads(sys.argv[2])
launch = detect_launch()
rank = launch.worker.rank
report = Path(folder, f"{rank}.json")
started = time.monotonic()
def all_have_reported():  # a launcher ends the others when the first one ends
    until = time.monotonic() + 30
    while len(list(Path(folder).glob("*.json"))) < launch.worker.world_size - len(silent) and time.monotonic() < until:
        time.sleep(0.05)
    sys.exit()
if rank in silent:
    all_have_reported()
try:
    addresses = cluster_addresses(launch, DEADLINE if silent else 60)
    os.environ["TF_CONFIG"] = tf_config(launch, addresses)
    again = detect_launch()  # does not contradict the launcher
    found = {"launcher": launch.launcher, "addresses": addresses, "again": cluster_addresses(again, 1)}
    found["task"] = json.loads(os.environ["TF_CONFIG"])["task"]
except Exception as error:
    found = {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - started}
found["imported"] = [name for name in ("tensorflow", "torch") if sys.modules.get(name) is not None]
report.with_suffix(".new").write_text(json.dumps(found))
report.with_suffix(".new").rename(report)
if silent:
    all_have_reported()
"""
DEADLINE = 2
OF_TORCH = ("torchrun", "deepspeed", "environment")


def argv_of(launcher: str, workers: int, program: list[str], port: int, by_hand: Any) -> list[str]:
    if launcher == "torchrun":
        options = ["--standalone", "--nproc-per-node", str(workers)]
        return [sys.executable, "-m", "torch.distributed.run", *options, *program]
    if launcher in ("horovodrun", "deepspeed"):
        path = find_launcher(launcher)
        assert path is not None
        if launcher == "deepspeed":
            return [path, "--no_local_rank", "--num_accelerators", str(workers), "--master_port", str(port), *program]
        return [path, "-np", str(workers), sys.executable, *program]
    told = [environment(launcher, rank, workers, port) for rank in range(workers)]
    argv: list[str] = by_hand(told, [sys.executable, *program])
    return argv


def environment(kind: str, rank: int, workers: int, port: int) -> dict[str, str]:
    """Return the environment of a process without a launcher."""
    if kind == "environment":
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        return {"RANK": str(rank), "WORLD_SIZE": str(workers), **meeting}
    assert kind == "slurm"
    step = {"SLURM_STEP_NUM_TASKS": str(workers), "SLURM_STEP_TASKS_PER_NODE": str(workers)}
    job = {"SLURM_STEP_NODELIST": "localhost", "SLURM_JOB_ID": str(port), "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}
    return {**step, **job, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}


class Job:
    """Workers of one launcher; the `silent` ranks never send their address."""

    def __init__(
        self, launcher: str, workers: int, folder: Path, port: int, by_hand: Any, silent: Sequence[int] = ()
    ) -> None:
        script = folder / "program.py"
        script.write_text(PROGRAM.replace("DEADLINE", str(DEADLINE)))
        argv = argv_of(launcher, workers, [str(script), str(folder), json.dumps(silent)], port, by_hand)
        # A proxy that the environment names must not stand between the workers.
        env = {"OMP_NUM_THREADS": "1", "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        self.result: JobResult = run_marked(argv, env=env, timeout=90)
        self.found: dict[int, dict[str, Any]] = {
            int(path.stem): json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))
        }


def launchers(*names: str, exhaustive: Sequence[str] = ()) -> list[Any]:
    """Return the installed launchers, some for the exhaustive size only."""
    needs = {"horovodrun": "horovod", "slurm": None, "deepspeed": "deepspeed"}
    return [
        pytest.param(
            name,
            marks=[
                pytest.mark.skipif(engine is not None and package(engine) is None, reason=f"no {engine}"),
                *([pytest.mark.exhaustive] if name in exhaustive else []),
            ],
        )
        for name in names
        for engine in (needs.get(name, "torch"),)
    ]


@pytest.mark.parametrize(
    "launcher", launchers("horovodrun", "torchrun", "deepspeed", "environment", "slurm", exhaustive=["deepspeed"])
)
def test_workers_agree_on_their_addresses(launcher: str, tmp_path: Path, free_ports: Any, by_hand: Any) -> None:
    (port,) = free_ports(1)
    workers = 3 if launcher == "slurm" else 2
    job = Job(launcher, workers, tmp_path, port, by_hand)
    assert job.result.returncode == 0, job.result.describe()
    assert sorted(job.found) == list(range(workers)), job.result.describe()
    for rank, found in job.found.items():
        assert "error" not in found, found
        assert found["launcher"] == launcher
        assert found["addresses"] == found["again"] == job.found[0]["addresses"]
        assert found["task"] == {"type": "worker", "index": rank}
        assert found["imported"] == (["torch"] if launcher in OF_TORCH else [])
    addresses = job.found[0]["addresses"]
    assert len(addresses) == workers
    assert len({port for _, port in addresses}) == workers
    assert {host for host, _ in addresses} <= {"127.0.0.1", "localhost"}


@pytest.mark.parametrize(
    ("launcher", "silent", "named"),
    [
        ("horovodrun", [1], "rank 1 of 3"),
        ("torchrun", [0], "rank 0 of 3"),
        ("environment", [1, 2], "ranks 1, 2 of 3"),
        pytest.param("environment", [2], "rank 2 of 3", marks=pytest.mark.exhaustive),
    ],
)
def test_workers_that_never_report_are_named_to_all_others(
    launcher: str, silent: list[int], named: str, tmp_path: Path, free_ports: Any, by_hand: Any
) -> None:
    (port,) = free_ports(1)
    job = Job(launcher, 3, tmp_path, port, by_hand, silent)
    assert sorted(job.found) == [rank for rank in range(3) if rank not in silent], job.result.describe()
    for found in job.found.values():
        assert found["error"].startswith(
            f"LauncherError: {named} did not send TensorFlow's address within {DEADLINE} s"
        ), found
        assert DEADLINE - 0.5 < found["seconds"] < DEADLINE + 8


@pytest.mark.parametrize("launcher", launchers("environment"))
def test_the_worker_that_all_should_meet_at_is_named(
    launcher: str, tmp_path: Path, free_ports: Any, by_hand: Any
) -> None:
    (port,) = free_ports(1)
    job = Job(launcher, 2, tmp_path, port, by_hand, [0])
    (found,) = job.found.values()
    assert found["error"].startswith("LauncherError: worker 1 of 2 cannot meet the others"), found
    assert f"MASTER_PORT={port}" in found["error"] and "Look into rank 0's output" in found["error"]
    assert found["seconds"] < 12


@pytest.mark.parametrize("launcher", launchers("environment"))
def test_a_busy_port_is_named(launcher: str, tmp_path: Path, by_hand: Any) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        job = Job(launcher, 2, tmp_path, port, by_hand, [1])
    assert job.found[0]["error"].startswith("LauncherError: worker 0 of 2 cannot"), job.result.describe()
    assert f"MASTER_PORT={port}" in job.found[0]["error"]


def test_without_torch_a_bare_environment_asks_for_tf_config(tmp_path: Path, free_ports: Any) -> None:
    (port,) = free_ports(1)
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    argv = [sys.executable, str(script), str(tmp_path), "[]", "without_torch"]
    started = time.monotonic()
    subprocess.run(argv, env={**os.environ, **environment("environment", 1, 2, port)}, timeout=60, check=True)
    assert time.monotonic() - started < 15
    error = json.loads((tmp_path / "1.json").read_text())["error"]
    assert error.startswith("LauncherError: ") and "set TF_CONFIG" in error and '{"cluster"' in error, error
