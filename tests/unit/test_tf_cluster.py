"""TensorFlow's cluster as far as one process can tell: TF_CONFIG, Slurm's host lists, and what cannot be derived."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from farandole.adapters import LauncherError, Worker
from farandole.adapters.launch.addresses import host_towards, own_host
from farandole.adapters.launch.detect import detect_launch
from farandole.adapters.launch.horovodrun import HorovodrunStore, find_horovodrun_store
from farandole.adapters.launch.slurm import expand_hosts, slurm_addresses
from farandole.adapters.launch.tf_config import read_tf_config
from farandole.adapters.launch.variables import Launch
from farandole.adapters.tensorflow.cluster import _exchange, cluster_addresses, tf_config

pytestmark = pytest.mark.usefixtures("no_launcher")
BEFORE_EPHEMERAL = range(10000, 20000)


def step(
    rank: int, nodes: str, per_node: str, places: list[tuple[int, int]], job: int = 7, number: int = 0, **more: str
) -> dict[str, str]:
    """Slurm's variables for one task; `places` are each task's node and number on it."""
    node, local = places[rank]
    return {
        "SLURM_JOB_ID": str(job),
        "SLURM_STEP_ID": str(number),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": per_node,
        "SLURM_STEP_NUM_TASKS": str(len(places)),
        "SLURM_PROCID": str(rank),
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(local),
        **more,
    }


def derive(environ: dict[str, str]) -> tuple[tuple[str, int], ...]:
    return slurm_addresses(detect_launch(environ), environ)


@pytest.mark.parametrize(
    ("nodes", "hosts"),
    [
        ("n1", ["n1"]),
        ("n9,n10", ["n9", "n10"]),
        ("n[9-11]", ["n9", "n10", "n11"]),
        ("gpu[003-004,9],login1", ["gpu003", "gpu004", "gpu9", "login1"]),
        ("gpu[098-101]", ["gpu098", "gpu099", "gpu100", "gpu101"]),
        ("n[1-2]-ib,m", ["n1-ib", "n2-ib", "m"]),
        ("rack[1-2]n[3-4]", ["rack1n3", "rack1n4", "rack2n3", "rack2n4"]),
        ("a-b.example.org", ["a-b.example.org"]),
        ("10.0.0.[1-2]", ["10.0.0.1", "10.0.0.2"]),
    ],
)
def test_host_lists_expand_in_order(nodes: str, hosts: list[str]) -> None:
    assert expand_hosts(nodes) == hosts


@pytest.mark.parametrize("nodes", ["", ",", "n[", "n]1", "n[a-b]", "n[]", "n[1-2", "n1,,n2", "n1,", "n 1", "n[1-2-3]"])
def test_what_is_no_host_list_is_refused(nodes: str) -> None:
    with pytest.raises(LauncherError, match="is not a Slurm host list"):
        expand_hosts(nodes)


UNEVEN = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]


def test_tasks_of_a_step_agree_on_addresses_in_rank_order() -> None:
    told = [derive(step(rank, "n[9-11]", "2(x2),1", UNEVEN)) for rank in range(5)]
    assert all(addresses == told[0] for addresses in told)
    assert [host for host, _ in told[0]] == ["n9", "n9", "n10", "n10", "n11"]
    assert len(set(told[0])) == 5
    assert all(port in BEFORE_EPHEMERAL for _, port in told[0])


@pytest.mark.parametrize("tasks", [1, 2, 7, 64])
def test_neighbouring_jobs_and_steps_of_a_machine_share_no_port(tasks: int) -> None:
    places = [(0, local) for local in range(tasks)]
    seen: set[tuple[str, int]] = set()
    for job in (4711, 4712, 4713):
        for number in (0, 1, 2):
            addresses = derive(step(0, "n1", str(tasks), places, job, number))
            assert len(addresses) == tasks
            assert seen.isdisjoint(addresses)
            assert all(port in BEFORE_EPHEMERAL for _, port in addresses)
            seen.update(addresses)


TWO_BY_TWO = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize("rank", [1, 2])
def test_tasks_out_of_order_are_refused(rank: int) -> None:
    with pytest.raises(LauncherError, match=f"task {rank} on node .*--distribution=block"):
        derive(step(rank, "n[1-2]", "2(x2)", TWO_BY_TWO))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("asked", ["cyclic", "cyclic:block,Pack", "plane=1"])
def test_each_task_alike_refuses_a_distribution_that_is_told(rank: int, asked: str) -> None:
    with pytest.raises(LauncherError, match="--distribution=block"):
        derive(step(rank, "n[1-2]", "2(x2)", TWO_BY_TWO, SLURM_DISTRIBUTION=asked))


def test_any_distribution_does_where_it_makes_no_difference() -> None:
    one_each = derive(step(1, "n[1-2]", "1(x2)", [(0, 0), (1, 0)], SLURM_DISTRIBUTION="cyclic"))
    assert [host for host, _ in one_each] == ["n1", "n2"]
    one_machine = derive(step(1, "n1", "2", [(0, 0), (0, 1)], SLURM_DISTRIBUTION="cyclic"))
    assert [host for host, _ in one_machine] == ["n1", "n1"]


@pytest.mark.parametrize(
    ("nodes", "per_node", "said"),
    [
        ("", "2", "SLURM_STEP_NODELIST is not set"),
        ("n1", "", "SLURM_STEP_TASKS_PER_NODE is not set"),
        ("n[1-2]", "2", "contradict each other"),
        ("n1", "3", "contradict each other"),
        ("n[", "2", "is not a Slurm host list"),
    ],
)
def test_a_step_that_does_not_say_who_is_where_is_refused(nodes: str, per_node: str, said: str) -> None:
    environ = step(0, nodes, per_node, [(0, 0), (0, 1)])
    launch = Launch("slurm", Worker(0, 2, 0, 2, 0))
    with pytest.raises(LauncherError, match=said):
        slurm_addresses(launch, environ)


def test_a_port_that_is_taken_is_named() -> None:
    environ = step(1, "localhost", "2", [(0, 0), (0, 1)])
    (_, _), (_, port) = derive(environ)
    with socket.create_server(("", port)), pytest.raises(LauncherError, match=rf"{port}.*SLURM_JOB_ID.*Set TF_CONFIG"):
        derive(environ)


CLUSTER = {"chief": ["c:5"], "worker": ["a:1", "b:2"]}
GIVEN = json.dumps({"cluster": CLUSTER, "task": {"type": "worker", "index": 0}})


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"RANK": "1", "WORLD_SIZE": "3"},
        {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "3"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "3"},
        step(1, "n[1-3]", "1(x3)", [(0, 0), (1, 0), (2, 0)]),
    ],
)
def test_addresses_of_tf_config_stand_beside_any_launcher(more: dict[str, str], monkeypatch: Any) -> None:
    for name, text in {"TF_CONFIG": GIVEN, **more}.items():
        monkeypatch.setenv(name, text)
    assert cluster_addresses(detect_launch(), 0.1) == (("c", 5), ("a", 1), ("b", 2))


@pytest.mark.parametrize("launcher", ["none", "openmpi", "environment", "horovodrun", "slurm"])
def test_one_worker_needs_no_cluster(launcher: str) -> None:
    assert cluster_addresses(Launch(launcher, Worker()), 0.1) == ()


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        ("openmpi", ["openmpi started 2 workers", "`farandole run` or horovodrun", "set TF_CONFIG"]),
        ("horovodrun", ["HOROVOD_GLOO_RENDEZVOUS_ADDR", "start the script with horovodrun", "set TF_CONFIG"]),
        ("environment", ["no address to meet at", "MASTER_ADDR", "set TF_CONFIG"]),
    ],
)
def test_what_cannot_be_derived_says_the_way_out(launcher: str, said: list[str]) -> None:
    with pytest.raises(LauncherError) as caught:
        cluster_addresses(Launch(launcher, Worker(0, 2, 0, 2)), 0.1)
    assert all(part in str(caught.value) for part in said), str(caught.value)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_tf_config_that_is_written_reads_back(rank: int) -> None:
    addresses = (("n9", 10000), ("n10", 10001))
    cluster = read_tf_config({"TF_CONFIG": tf_config(Launch("slurm", Worker(rank, 2)), addresses)})
    assert cluster is not None
    assert cluster.addresses == addresses
    assert cluster.worker.rank == rank


class Told:
    """A store in which rank 1 of 2 has put its address, and nothing else."""

    def put(self, key: str, text: str) -> None: ...

    def wait(self, key: str, timeout: float) -> str | None:
        return "b:1" if key.endswith("address_1") else "a:1" if key.endswith("address_0") else None


@pytest.mark.parametrize(("rank", "ended"), [(0, 1), (1, 0)])
def test_who_ends_while_addresses_are_passed_on_is_named(rank: int, ended: int) -> None:
    with pytest.raises(LauncherError, match=f"rank {ended} of 2 ended while"):
        _exchange(Told(), Worker(rank, 2), "c:1", 0.1)


ALL_HERE = Worker(1, 2, 1, 2, 0)


@pytest.mark.parametrize(
    ("launch", "host"),
    [
        (Launch("torchrun", ALL_HERE, ("localhost", 1)), "127.0.0.1"),
        (Launch("torchrun", Worker(1, 2, 0, 1, 1), ("localhost", 1)), "localhost"),
        # Here LOCAL_WORLD_SIZE may only be unknown: the workers may be on two machines.
        (Launch("environment", ALL_HERE, ("localhost", 1)), "localhost"),
        (Launch("environment", Worker()), "127.0.0.1"),
        (Launch("openmpi", Worker(1, 2, 0, 1, 1)), socket.gethostname()),
    ],
)
def test_a_worker_knows_where_the_others_reach_it(launch: Launch, host: str) -> None:
    assert own_host(launch) == host


def test_own_host_is_the_one_by_which_the_others_come() -> None:
    assert host_towards("127.0.0.1", 1) == "127.0.0.1"
    assert host_towards("localhost", 1) == "localhost"  # the name, as others may know this machine by it
    with pytest.raises(LauncherError, match=r"no route from here to no-such-host\.invalid:1"):
        host_towards("no-such-host.invalid", 1)


def test_the_key_value_server_is_found_where_horovodrun_tells_of_it() -> None:
    told = {"HOROVOD_GLOO_RENDEZVOUS_ADDR": "h", "HOROVOD_GLOO_RENDEZVOUS_PORT": "12"}
    store = find_horovodrun_store(told)
    assert store is not None
    assert (store.host, store.port) == ("h", 12)
    assert find_horovodrun_store({}) is None
    with pytest.raises(LauncherError, match="HOROVOD_GLOO_RENDEZVOUS_PORT='x' is not a port"):
        find_horovodrun_store({**told, "HOROVOD_GLOO_RENDEZVOUS_PORT": "x"})


def test_a_key_value_server_that_is_gone_is_named(free_ports: Any) -> None:
    (port,) = free_ports(1)
    store = HorovodrunStore("127.0.0.1", port)
    with pytest.raises(LauncherError, match=f"127.0.0.1:{port} does not answer"):
        store.wait("key", 5)
