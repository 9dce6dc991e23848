"""A strategy joined for Lightning is left after any failure, and leaves no trace for the next one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from farandole.adapters import Worker, WorkerLostError, create_strategy
from farandole.adapters.torch.engines.local import LocalStrategy
from farandole.plugins.lightning import job


class Broken(LocalStrategy):
    """A strategy whose other worker is lost at once."""

    @property
    def worker(self) -> Worker:
        return Worker(0, 2) if self._state == "joined" else Worker()

    def broadcast(self, value: Any, root: int = 0) -> Any:
        raise WorkerLostError("planned")


class CannotLeave(LocalStrategy):
    def barrier(self) -> None:
        raise WorkerLostError("planned")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    with create_strategy("ddp") as strategy:
        assert not job._companions, "nor does the next one adopt the process group beside an earlier one"
        assert strategy.reduce(2.0) == 2.0
    assert not dist.is_initialized(), "the group was of the strategy itself"


@pytest.fixture
def companion() -> None:
    """A process group next to a strategy."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    job._companions.append(dist.group.WORLD)


def test_what_cannot_be_opened_beside_it() -> None:
    with pytest.raises(WorkerLostError):
        job.join("broken", Broken, ())


def test_workers_that_do_not_leave_with_it(companion: None) -> None:
    job.join("left", CannotLeave, ())
    with pytest.raises(WorkerLostError):
        job.leave()


def test_a_failure(companion: None) -> None:
    job.abandon(job.join("failed", LocalStrategy, ()).strategy, ValueError("planned"))
    assert dist.is_initialized(), "others may be in a collective"


def test_a_worker_that_goes_on_alone_is_ended(capfd: pytest.CaptureFixture[str]) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as worker:
        assert job._wait_for(worker, time.monotonic()) != 0
    assert f"worker process {worker.pid} goes on after worker 0 has left" in capfd.readouterr().err
