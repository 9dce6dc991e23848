"""A worker that lost another one: every method raises a typed error of one line, with a short traceback."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from farandole.adapters import strategy_row

PROGRAM = Path(__file__).with_name("lost_worker_program.py")
STRATEGIES = ("ddp", "fsdp", "deepspeed_zero_2", "horovod", "tf_multiworker", "tf_horovod")
METHODS = ("step", "reduce", "gather", "broadcast", "barrier", "save", "load")


def variables(strategy: str, rank: int, ports: list[int]) -> dict[str, str]:
    """Return the variables of one worker, without a launcher that would end the other one."""
    if strategy_row(strategy).framework == "torch":
        return {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(ports[0])}
    addresses = [f"127.0.0.1:{port}" for port in ports]
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}})}


@pytest.mark.timeout(150)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_method_says_that_a_worker_is_lost(
    strategy: str, tmp_path: Path, free_ports: Callable[[int], list[int]]
) -> None:
    ports = free_ports(2)
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), strategy, str(tmp_path)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "1", **variables(strategy, rank, ports)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        output, _ = started[0].communicate(timeout=120)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    said = dict(re.findall(r"^CALL (\w+) (.*)$", output, re.MULTILINE))
    assert tuple(said) == METHODS, output
    for method, told in said.items():
        assert told.startswith("WorkerLostError worker 0 of 2 lost another worker of the job"), f"{method}: {output}"
    assert "READ" not in output or "READ UnavailableError" in output, output
    traceback = output[output.rindex("Traceback (most recent call last)") :]
    frames, told = traceback.split("farandole.adapters.errors.WorkerLostError: ")
    assert frames.count("File ") == 2, "the two lines of the program on the way to the call"
    assert told.startswith("worker 0 of 2 lost another worker"), output
    assert started[0].returncode != 0
