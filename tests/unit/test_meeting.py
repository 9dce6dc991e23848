"""Workers, as threads, that meet at their end: all get the same answer, in bounded time."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from farandole.adapters import Worker, WorkerLostError
from farandole.adapters.torch.meeting import Meeting

WORKERS = 3


@pytest.fixture
def meetings(monkeypatch: pytest.MonkeyPatch) -> list[Meeting]:
    """One for each worker, which waits a third of 0.9 s for the others."""
    monkeypatch.setenv("FARANDOLE_LEAVE_TIMEOUT", "0.9")
    store = HashStore()
    return [Meeting(store, Worker(rank, WORKERS, rank, WORKERS, 0)) for rank in range(WORKERS)]


def test_all_come(meetings: list[Meeting]) -> None:
    with ThreadPoolExecutor(WORKERS) as pool:
        assert list(pool.map(lambda meeting: meeting.all_come("here"), meetings)) == [True] * WORKERS


def test_who_is_late_gets_the_answer_of_those_that_waited(meetings: list[Meeting]) -> None:
    began = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        assert list(pool.map(lambda meeting: meeting.all_come("here"), meetings[:2])) == [False] * 2
    assert 0.3 <= time.monotonic() - began < 5
    assert not meetings[2].all_come("here")
    assert not meetings[0].all_come("elsewhere")


def test_who_has_lost_another_waits_for_nobody(meetings: list[Meeting]) -> None:
    assert not meetings[0].all_come("here", lost=True)
    meetings[1].close()
    assert not meetings[1].all_come("here")


def test_rank_0_is_told_the_first_failure_of_its_own(meetings: list[Meeting]) -> None:
    meetings[1].tell(WorkerLostError("lost"))
    assert meetings[0].told() == ""
    meetings[2].tell(ValueError("the mistake"))
    assert meetings[0].told() == "worker 2 failed:\nValueError: the mistake"
    assert meetings[1].told() == "", "rank 0 keeps the store"
