"""Loaders that the user of Lightning splits, or that are not split."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from farandole.plugins.conformance.servers import WorkerServers

PROGRAM = Path(__file__).with_name("unshared_program.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, worker_servers: WorkerServers) -> list[dict[str, Any]]:
    """What each of two workers found."""
    folder = tmp_path_factory.mktemp("unshared")
    job = worker_servers.run_program("horovod", 2, [str(PROGRAM), str(folder)], timeout=90)
    assert job.returncode == 0 and not job.survivors, job.describe()
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


pytestmark = pytest.mark.timeout(120)


def test_an_iterable_dataset_that_shares_itself_out_is_trained_on(found: list[dict[str, Any]]) -> None:
    assert [worker["shared by itself"][0] for worker in found] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]
    # Three steps towards the means of the batches of both workers, 1.5, 5.5 and 9.5, from 0, each a fifth of the way.
    assert found[0]["shared by itself"][1] == found[1]["shared by itself"][1] == pytest.approx(2.972, abs=1e-4)


def test_waiting_for_their_data_is_timed(found: list[dict[str, Any]]) -> None:
    """Lightning reads one batch ahead of data that have no length, and once more to find their end."""
    assert [worker["fetches"] for worker in found] == [[2, 1, 1]] * 2


def test_samplers_of_the_users_are_left_alone(found: list[dict[str, Any]]) -> None:
    assert [worker["sampler by rank"][0] for worker in found] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert [worker["left alone"][0] for worker in found] == [list(range(10))] * 2


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("copies", "every worker got the same first batch of its IterableDataset"),
        ("other ends", "ended on 1 of 2 workers, and the others cannot train on"),
        ("other lengths", "different numbers of batches (4, 6)"),
        ("other callbacks", "worker 1 has the callbacks [], worker 0 has [Watcher"),
    ],
)
def test_refused_on_all_workers(found: list[dict[str, Any]], case: str, words: str) -> None:
    assert all(words in worker[case] for worker in found)


def test_copies_may_be_meant(found: list[dict[str, Any]]) -> None:
    assert [worker["copies that are meant"] for worker in found] == ["", ""]


def test_a_loader_that_forks_is_warned_of_where_that_may_hang(found: list[dict[str, Any]]) -> None:
    """Once, by rank 0; Python 3.11.10 fixed it."""
    forks = "forks its 1 process(es)"
    told = [
        [sum(forks in warning for warning in caught) for caught in worker["shared by itself"][2]] for worker in found
    ]
    assert told == [[int(sys.version_info < (3, 11, 10)), 0], [0, 0]]
