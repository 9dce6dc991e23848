"""Which worker may take a rank at rank 0's store: workers are threads here, each with its own connection."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import TCPStore

from farandole.adapters import LauncherError, Worker
from farandole.adapters.launch.variables import Launch
from farandole.adapters.origin import Origin, is_stranger, own_origin
from farandole.adapters.torch import admission

pytestmark = pytest.mark.timeout(30)
HOST, STARTER, MAIN = own_origin(0, 2)
OURS, STARTED_BY_MAIN = [HOST, STARTER, 1], [HOST, MAIN, 2]
STRANGER, OF_ANOTHER_HOST = [HOST, -1, 3], ["another host", -2, 4]
IN = "in"


class Meeting:
    """The store of rank 0, which is this process, and threads that connect to it."""

    def __init__(self, launcher: str) -> None:
        self._store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self.address = ("127.0.0.1", self._store.port)
        self._launcher = launcher
        self.threads = ThreadPoolExecutor(4)

    def begin(self, world_size: int = 2) -> None:
        admission.announce(self._store, self._launch(0, world_size))

    def come(self, origin: Origin, rank: int = 1, world_size: int = 2) -> Future[str]:
        """Return a worker's result: "in", or its error."""
        store = TCPStore(*self.address, is_master=False)

        def answer() -> str:
            try:
                admission.take_rank(store, self._launch(rank, world_size), timedelta(seconds=0.5), origin)
            except LauncherError as error:
                return str(error)
            return IN

        return self.threads.submit(answer)

    def all_come(self, world_size: int = 2) -> None:
        admission.wait_for_all(self._store, self._launch(0, world_size), timedelta(seconds=0.5))

    def turn_workers_away(self, address: tuple[str, int] | None = None) -> None:
        admission.turn_workers_away(self._launch(0, 2), address or self.address)

    def _launch(self, rank: int, world_size: int) -> Launch:
        return Launch(self._launcher, Worker(rank, world_size, rank, world_size), self.address)


@pytest.fixture(params=["environment"])
def meeting(request: pytest.FixtureRequest) -> Iterator[Meeting]:
    meeting = Meeting(request.param)
    yield meeting
    meeting.threads.shutdown()


@pytest.mark.parametrize("origin", [OURS, STARTED_BY_MAIN, OF_ANOTHER_HOST])
def test_a_worker_of_the_job_need_not_wait(meeting: Meeting, origin: Origin) -> None:
    meeting.begin()
    started = time.monotonic()
    assert meeting.come(origin).result() == IN
    meeting.all_come()
    assert time.monotonic() - started < 0.5


def test_a_worker_that_comes_first_waits_for_rank_0(meeting: Meeting) -> None:
    worker = meeting.come(OURS)
    time.sleep(0.1)
    assert not worker.done()
    meeting.begin()
    assert worker.result() == IN


def test_another_jobs_worker_gives_way_to_ours(meeting: Meeting) -> None:
    meeting.begin()
    stranger = meeting.come(STRANGER)
    time.sleep(0.1)
    assert meeting.come(OURS).result() == IN
    said = stranger.result()
    assert said.startswith("two processes say that they are worker 1 of 2 at MASTER_ADDR=127.0.0.1, MASTER_PORT="), said
    assert said.endswith("choose a free one in MASTER_PORT, the same for all workers of a job")


def test_a_worker_that_something_else_started_comes_in_later(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PATIENCE", 0.3)
    meeting.begin()
    started = time.monotonic()
    assert meeting.come(STRANGER).result() == IN
    assert time.monotonic() - started >= 0.3


def test_a_rank_is_taken_once(meeting: Meeting) -> None:
    meeting.begin()
    came = [meeting.come(OURS).result(), meeting.come([HOST, STARTER, 9]).result()]
    assert came[0] == IN and f"process 1 on {HOST} was first" in came[1]


def test_a_worker_of_a_job_of_another_size_is_told(meeting: Meeting) -> None:
    meeting.begin()
    assert "met another job's rank 0" in meeting.come(OURS, world_size=3).result()


def test_a_rank_0_that_cannot_listen_tells_its_workers(meeting: Meeting) -> None:
    meeting.begin()
    stranger = meeting.come(STRANGER)
    meeting.turn_workers_away()  # in the name of this process
    time.sleep(0.1)
    assert not stranger.done(), "it is not of the rank 0 that was turned away"
    assert meeting.come(OURS).result() == IN, "neither is a worker of the rank 0 that listens, with the same starter"
    assert "two processes" in stranger.result()


@pytest.mark.parametrize("meeting", ["deepspeed"], indirect=True)
def test_who_was_told_leaves_at_once_and_says_what_to_type(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "own_origin", lambda *_: STRANGER)
    meeting.turn_workers_away()
    monkeypatch.undo()
    meeting.begin()
    said = meeting.come(STRANGER).result(1)
    assert said.endswith("two jobs use the same port; choose a free one with: deepspeed --master_port")


def test_who_does_not_come_is_named(meeting: Meeting) -> None:
    meeting.begin(world_size=4)
    assert meeting.come(OURS, rank=2, world_size=4).result() == IN
    with pytest.raises(LauncherError, match=r"^ranks 1, 3 of 4 did not come within 0 s to MASTER_ADDR="):
        meeting.all_come(world_size=4)


def test_a_store_without_a_rank_0_is_named(meeting: Meeting) -> None:
    assert "rank 0 did not come within 0 s to the store" in meeting.come(OURS).result()


@pytest.mark.parametrize(
    "variables",
    [
        {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-1"},
    ],
)
def test_a_schedulers_job_has_a_name(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its workers may have its own wrapper."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    worker = own_origin(1, 2)
    assert own_origin(0, 2)[1] == own_origin(1, 3)[1] == STARTER, "the scheduler did not start this job itself"
    monkeypatch.setenv(next(iter(variables)), "0")
    main = own_origin(0, 2)
    assert worker[1] == main[1] != STARTER and not is_stranger([*worker[:2], -1], [*main[:2], -2])
    monkeypatch.setenv(list(variables)[-1], "another")
    assert is_stranger(own_origin(0, 2), [*main[:2], -2])


def test_what_is_no_store_is_left_alone(meeting: Meeting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_TELLING", timedelta(seconds=0.3))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        meeting.turn_workers_away(silent.getsockname())
