"""Workers find each other before their engine does; they are threads here, because no engine is needed."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters import LauncherError
from farandole.adapters import roll_call as roll_call_module
from farandole.adapters.roll_call import Address, Lines, ended, roll_call

pytestmark = pytest.mark.timeout(30)
FreePorts = Callable[[int], list[int]]


@pytest.fixture
def cluster(free_ports: FreePorts) -> list[Address]:
    """The addresses of three workers."""
    return [("127.0.0.1", port) for port in free_ports(3)]


def call(*workers: tuple[Sequence[Address], int], deadline: float = 5.0) -> list[Any]:
    """Return what each of these workers, given as (addresses, rank), receives from all; or its error."""

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


def test_connections_that_stay_tell_of_ends(cluster: list[Address]) -> None:
    lines: list[Lines] = [{}, {}, {}]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda rank: roll_call(cluster, rank, None, 5, lines[rank]), range(3)))
    assert [sorted(each) for each in lines] == [[1, 2], [0], [0]]
    assert [ended(each) for each in lines] == [[], [], []]
    with socket.create_server(cluster[0]):  # the address is still free for the engine
        pass
    lines[2][0].close()
    assert [ended(each) for each in lines[:2]] == [[2], []]
    lines[0][1].close()
    assert ended(lines[1]) == [0]


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
        assert "ended before all had joined, or another program listens there" in told.result()[0]


def test_workers_of_different_clusters_are_told(cluster: list[Address]) -> None:
    for said in call((cluster[:2], 0), (cluster, 1)):
        assert said.startswith("worker 1 has the cluster ") and said.endswith("give all workers the same one")


def test_two_workers_of_one_index_are_told(cluster: list[Address]) -> None:
    found = call((cluster, 0), (cluster, 1), (cluster, 1))
    assert "two processes say that they are worker 1" in found[0]
    assert all(isinstance(said, str) for said in found)


STRANGER = """
import sys
from farandole.adapters import LauncherError
from farandole.adapters.roll_call import roll_call
port, deadline = int(sys.argv[1]), float(sys.argv[2])
try:
    print(roll_call([("127.0.0.1", port), ("127.0.0.1", 1)], 1, "the other's", deadline))
except LauncherError as error:
    print(error)
"""


def other_jobs_worker(port: int, deadline: float) -> str:
    """Return what worker 1 receives if neither worker 0, nor the process that started it, started worker 1."""
    by_shell = ["sh", "-c", '"$@"; exit', "sh", sys.executable, "-c", STRANGER, str(port), str(deadline)]
    return subprocess.run(by_shell, capture_output=True, text=True, check=True).stdout.rstrip()


def test_another_jobs_worker_gives_way(cluster: list[Address]) -> None:
    addresses = [cluster[0], ("127.0.0.1", 1)]
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(other_jobs_worker, cluster[0][1], 10)
        main = threads.submit(roll_call, addresses, 0, "ours", 10)
        while not other.done() and len(connections_to(cluster[0][1])) < 1:
            time.sleep(0.02)
        assert not other.done() and not main.done()
        assert roll_call(addresses, 1, "ours", 5) == main.result() == ["ours", "ours"]
        said = f"two processes say that they are worker 1 of the cluster 127.0.0.1:{cluster[0][1]}, 127.0.0.1:1: "
        assert other.result().startswith(said) and "TF_CONFIG; choose other ports" in other.result()


def test_a_worker_that_something_else_started_joins_later(
    cluster: list[Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(roll_call_module, "PATIENCE", 0.3)
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(other_jobs_worker, cluster[0][1], 10)
        assert roll_call([cluster[0], ("127.0.0.1", 1)], 0, "ours", 10) == ["ours", "the other's"]
        assert other.result() == "['ours', \"the other's\"]"


def connections_to(port: int) -> list[str]:
    """Return the established connections of this process's end."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return [line for line in lines if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "01"]


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
    """Connect to a server that is about to listen."""
    for _ in range(100):
        try:
            return socket.create_connection(address, timeout=1)
        except ConnectionRefusedError:
            time.sleep(0.02)
    raise AssertionError("nobody listens")
