"""Workers find each other before their engine does: threads are the workers here, as no engine is needed for it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from farandole.adapters import LauncherError
from farandole.adapters.roll_call import Address, roll_call

pytestmark = pytest.mark.timeout(30)
FreePorts = Callable[[int], list[int]]


@pytest.fixture
def cluster(free_ports: FreePorts) -> list[Address]:
    """The addresses of three workers."""
    return [("127.0.0.1", port) for port in free_ports(3)]


def call(*workers: tuple[Sequence[Address], int], deadline: float = 5.0) -> list[Any]:
    """Return what each of some workers, given as (addresses, rank), hears from all; or the error that it gets."""

    def answer(worker: tuple[Sequence[Address], int]) -> Any:
        addresses, rank = worker
        try:
            return roll_call(addresses, rank, {"of": rank}, deadline)
        except LauncherError as error:
            return str(error)

    with ThreadPoolExecutor(len(workers)) as threads:
        return list(threads.map(answer, workers))


def test_all_hear_what_all_say_in_rank_order(cluster: list[Address]) -> None:
    heard = call((cluster, 2), (cluster, 0), (cluster, 1))
    assert heard == [[{"of": 0}, {"of": 1}, {"of": 2}]] * 3
    assert call((cluster, 1), (cluster, 2), (cluster, 0)) == heard, "the address of worker 0 is free again"


def test_one_worker_calls_nobody() -> None:
    assert call(([("nowhere.invalid", 1)], 0)) == [[{"of": 0}]]


def test_workers_that_do_not_come_are_named_to_all(cluster: list[Address]) -> None:
    said = f"worker 2 ({cluster[2][0]}:{cluster[2][1]}) did not join within 0.5 s, while others waited"
    assert call((cluster, 0), (cluster, 1), deadline=0.5) == [said, said]
    (alone,) = call((cluster, 0), deadline=0.1)
    assert re.match(r"worker 1 \(.*\) and worker 2 \(.*\) did not join within 0.1 s", alone)


def test_worker_0_that_does_not_come_is_named(cluster: list[Address]) -> None:
    for said in call((cluster, 1), (cluster, 2), deadline=0.3):
        assert said.startswith(f"worker 0 (127.0.0.1:{cluster[0][1]}) did not join within 0.3 s: worker ")


def test_worker_0_that_ends_before_all_have_joined_is_named(cluster: list[Address]) -> None:
    with socket.create_server(cluster[0]) as server, ThreadPoolExecutor(1) as thread:
        told = thread.submit(call, (cluster, 1))
        server.accept()[0].close()
        assert "ended, or is something else, before all workers had joined" in told.result()[0]


def test_workers_of_different_clusters_are_told(cluster: list[Address]) -> None:
    for said in call((cluster[:2], 0), (cluster, 1)):
        assert said.startswith("worker 1 was told of the cluster ") and said.endswith("they differ")


def test_two_workers_of_one_index_are_told(cluster: list[Address]) -> None:
    found = call((cluster, 0), (cluster, 1), (cluster, 1))
    assert "two processes say that they are worker 1" in found[0]
    assert all(isinstance(said, str) for said in found)


def test_two_workers_0_are_told(cluster: list[Address]) -> None:
    found = call((cluster, 0), (cluster, 0), deadline=0.5)
    assert sum("Is another process worker 0 too" in said for said in found) == 1
    assert sum("did not join within" in said for said in found) == 1


def test_strangers_at_the_door_are_not_counted(cluster: list[Address]) -> None:
    with ThreadPoolExecutor(1) as thread:
        told = thread.submit(call, (cluster, 0))
        for line in (b"GET / HTTP/1.1\r\n\r\n", b'{"rank": 1}\n', b""):
            with connected(cluster[0]) as connection:
                connection.sendall(line)
        heard = [{"of": 0}, {"of": 1}, {"of": 2}]
        assert call((cluster, 1), (cluster, 2)) == [heard] * 2
        assert told.result() == [heard]


def connected(address: Address) -> socket.socket:
    """Connect to somebody who is about to listen."""
    for _ in range(100):
        try:
            return socket.create_connection(address, timeout=1)
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError("nobody listens")
