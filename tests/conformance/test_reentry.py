"""Strategies one after the other in one process, by each launcher: none leaves a trace that breaks the next."""

import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.launch.start import find_launcher
from farandole.plugins.conformance.reentry import DONE
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.job import JobResult, run_marked
from farandole.plugins.launch.ports import hold_ports, port_of

MODULE = "farandole.plugins.conformance.reentry"
TORCH = ("ddp", "fsdp", "deepspeed_zero_2", "deepspeed_zero_3", "horovod")


def judge(job: JobResult) -> None:
    assert job.returncode == 0, job.describe()
    assert job.output.count(DONE) == 2, job.describe()
    assert not job.survivors, job.describe()


def launch(launched_for: str, rounds: int, strategies: Sequence[str], timeout: float = 120) -> None:
    command = launch_command(launched_for, 2, ["-m", MODULE, str(rounds), *strategies])
    judge(run_marked(command.argv, env=command.env, timeout=timeout))


def launch_by_deepspeed(rounds: int, strategies: Sequence[str], timeout: float = 120) -> None:
    """Start the workers by a launcher that `farandole run` uses for no strategy."""
    path = find_launcher("deepspeed")
    assert path is not None
    with hold_ports(1)[0] as held:
        own = [path, "--no_local_rank", "--num_accelerators", "2", "--master_port", str(port_of(held))]
        judge(run_marked([*own, "--module", MODULE, str(rounds), *strategies], timeout=timeout))


def each_after_each(strategies: Sequence[str]) -> list[str]:
    """Return a walk over each ordered pair once, also of equal ones (Hierholzer's algorithm)."""
    following = {name: list(strategies) for name in strategies}
    stack, walk = [strategies[0]], []
    while stack:
        if following[stack[-1]]:
            stack.append(following[stack[-1]].pop())
        else:
            walk.append(stack.pop())
    return walk


def test_the_walk_takes_each_pair_once() -> None:
    pairs = list(itertools.pairwise(each_after_each("abc")))
    assert sorted(pairs) == sorted(itertools.product("abc", repeat=2))


def test_after_each_other_under_torchrun() -> None:
    launch("ddp", 2, ["fsdp!", "ddp", "fsdp", "horovod", "deepspeed_zero_3", "deepspeed_zero_2", "ddp!", "horovod+"])


def test_under_horovodrun() -> None:
    launch("horovod", 3, ["horovod!", "horovod", "ddp"])


def test_under_the_deepspeed_launcher() -> None:
    launch_by_deepspeed(2, ["deepspeed_zero_3", "horovod", "deepspeed_zero_3!", "fsdp"])


def test_by_variables(free_ports: Any, by_hand: Any) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": "2"}
    told = [{**meeting, "RANK": str(rank)} for rank in range(2)]
    worker = [sys.executable, "-m", MODULE, "2", "horovod", "ddp+", "deepspeed_zero_2!", "horovod"]
    judge(run_marked(by_hand(told, worker), timeout=120))


def test_tensorflows_workers_again() -> None:
    launch("tf_multiworker", 5, ["tf_multiworker"])


def test_trainers_that_start_their_workers() -> None:
    program = str(Path(__file__).parent / "trainers_program.py")
    judge(run_marked([sys.executable, program, "2", "ddp", "horovod", "deepspeed_zero_3"], timeout=120))


@pytest.mark.exhaustive
@pytest.mark.timeout(700)
@pytest.mark.parametrize(
    "launched",
    [partial(launch, "ddp"), partial(launch, "horovod"), launch_by_deepspeed],
    ids=["torchrun", "horovodrun", "deepspeed"],
)
def test_each_after_each_five_times(launched: Callable[..., None]) -> None:
    launched(5, each_after_each((*TORCH, "deepspeed_zero_1")), timeout=600)


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", [*TORCH, "deepspeed_zero_1"])
def test_five_times(strategy: str) -> None:
    launch(strategy, 5, [strategy])


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
@pytest.mark.parametrize("failed", [*TORCH, "deepspeed_zero_1"])
def test_each_after_one_that_failed_and_a_late_worker(failed: str) -> None:
    launch("ddp", 2, [word for name in TORCH for word in (f"{failed}!", f"{name}+")], timeout=300)


@pytest.mark.exhaustive
def test_horovod_on_tensorflow_again() -> None:
    launch("tf_horovod", 5, ["tf_horovod"])
