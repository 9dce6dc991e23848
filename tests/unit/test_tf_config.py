"""TF_CONFIG, read without TensorFlow."""

from __future__ import annotations

import json
from typing import Any

import pytest

from farandole.adapters import LauncherError, Worker
from farandole.adapters.launch.tf_config import read_tf_config


def config(cluster: Any, kind: Any = "worker", index: Any = 0) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


TWO_HOSTS = {"worker": ["a:1", "a:2", "b:1", "a:3"]}
CHIEF = {"worker": ["a:1", "b:1"], "chief": ["b:9"]}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        pytest.param(config({"worker": ["a:1", "b:1"]}, index=0), (0, 2, 0, 1, 0), id="first of two hosts"),
        pytest.param(config({"worker": ["a:1", "b:1"]}, index=1), (1, 2, 0, 1, 1), id="second of two hosts"),
        pytest.param(config({"worker": ["a:1", "b:1"]}, index="1"), (1, 2, 0, 1, 1), id="an index in quotes"),
        pytest.param(config(TWO_HOSTS, index=0), (0, 4, 0, 3, 0), id="several on a host, first"),
        pytest.param(config(TWO_HOSTS, index=1), (1, 4, 1, 3, 0), id="several on a host, second"),
        pytest.param(config(TWO_HOSTS, index=2), (2, 4, 0, 1, 1), id="several on a host, the one elsewhere"),
        pytest.param(config(TWO_HOSTS, index=3), (3, 4, 2, 3, 0), id="several on a host, not in a row"),
        pytest.param(config(CHIEF, "chief", 0), (0, 3, 0, 2, 0), id="a chief comes first"),
        pytest.param(config(CHIEF, "worker", 0), (1, 3, 0, 1, 1), id="workers come after the chief"),
        pytest.param(config(CHIEF, "worker", 1), (2, 3, 1, 2, 0), id="a worker on the chief's host"),
        pytest.param(config({"chief": ["a:1"]}, "chief", 0), (0, 1, 0, 1, 0), id="a chief alone"),
    ],
)
def test_a_cluster_tells_who_this_is(text: str, numbers: tuple[int, ...]) -> None:
    cluster = read_tf_config({"TF_CONFIG": text})
    assert cluster is not None
    assert cluster.worker == Worker(*numbers)


def test_addresses_come_in_rank_order() -> None:
    cluster = read_tf_config({"TF_CONFIG": config(CHIEF, "worker", 1)})
    assert cluster is not None
    assert cluster.addresses == (("b", 9), ("a", 1), ("b", 1))


@pytest.mark.parametrize(("address", "parts"), [("b:65535", ("b", 65535)), ("[fe80::1]:1", ("[fe80::1]", 1))])
def test_addresses_are_taken_as_they_stand(address: str, parts: tuple[str, int]) -> None:
    cluster = read_tf_config({"TF_CONFIG": config({"worker": [address]})})
    assert cluster is not None
    assert cluster.addresses == (parts,)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"TF_CONFIG": ""},
        {"TF_CONFIG": " \n"},
        {"TF_CONFIG": "{}"},
        {"TF_CONFIG": '{"cluster": {}, "task": {"type": "worker", "index": 0}}'},
        {"TF_CONFIG": '{"cluster": null}'},
        {"TF_CONFIG": '{"environment": "cloud", "task": {"type": "worker", "index": 0}}'},
    ],
)
def test_what_describes_no_cluster_is_none(environ: dict[str, str]) -> None:
    assert read_tf_config(environ) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{'cluster': {}}", ["is not JSON", "line 1"]),
        ("worker", ["is not JSON"]),
        ('["a:1"]', ["is not a JSON object"]),
        ("3", ["is not a JSON object"]),
        (config(["a:1", "b:1"]), ["does not map task types to lists of addresses"]),
        (config({"worker": {"0": "a:1"}}), ["does not map task types to lists of addresses"]),
        (config({"worker": "a:1"}), ["does not map task types to lists of addresses"]),
        (config({"worker": ["a:1"], "ps": ["c:1"]}), ["tasks of type ps", "only workers"]),
        (config({"worker": ["a:1"], "ps": ["c:1"], "evaluator": ["d:1"]}), ["evaluator, ps"]),
        (json.dumps({"cluster": TWO_HOSTS}), ["names no task"]),
        (json.dumps({"cluster": TWO_HOSTS, "task": {"type": "worker"}}), ["names no task"]),
        (json.dumps({"cluster": TWO_HOSTS, "task": {"index": 0}}), ["names no task"]),
        (json.dumps({"cluster": TWO_HOSTS, "task": "worker 0"}), ["names no task"]),
        (config({"worker": ["a:1", "b:1"]}, index=2), ["this is worker 2", "only: worker 0, worker 1"]),
        (config({"worker": ["a:1", "b:1"]}, index=-1), ["this is worker -1"]),
        (config({"worker": ["a:1", "b:1"]}, index="x"), ["this is worker x"]),
        (config({"worker": ["a:1", "b:1"]}, index=None), ["this is worker None"]),
        (config({"worker": ["a:1", "b:1"]}, "chief", 0), ["this is chief 0", "only: worker 0, worker 1"]),
        (config(CHIEF, "worker", 2), ["this is worker 2", "only: chief 0, worker 0, worker 1"]),
        (config({"worker": ["a:1"]}, "evaluator", 0), ["this is evaluator 0"]),
        (config({"worker": ["a:1"]}, "ps", 0), ["this is ps 0"]),
        (config({"worker": ["a:1", "b:1"]}, index=True), ["this is worker True", "only: worker 0, worker 1"]),
        (config({"worker": ["a:1", "b:1"]}, index=False), ["this is worker False"]),
        (config({"worker": ["a:1", "b:1"]}, index=1.0), ["this is worker 1.0"]),
        (config({"worker": ["a:1", "b:1"]}, index=0.5), ["this is worker 0.5"]),
        (config({"worker": ["a:1", "b:1"]}, index=""), ["this is worker ,"]),
        (config({"worker": ["a:1", "b:1"]}, index="1.0"), ["this is worker 1.0"]),
        (config({"worker": ["a:1", "b:1"]}, index="²"), ["this is worker ²"]),
        (config({"worker": ["a:1", "b:1"]}, index=[0]), ["this is worker [0]"]),
        (config({"worker": ["a:1", "b:1"]}, ["worker"], 0), ["this is ['worker'] 0"]),
        (config([]), ["does not map task types to lists of addresses"]),
        (config("a:1"), ["does not map task types to lists of addresses"]),
        (config({"worker": []}), ["has no worker"]),
        (config({"chief": [], "worker": []}, "chief", 0), ["has no worker"]),
        (config({"chief": ["a:1", "b:1"]}, "chief", 0), ["2 chiefs", "one at most"]),
        (config({"chief": ["a:1"]}, "worker", 0), ["this is worker 0", "only: chief 0"]),
        (config({"evaluator": ["a:1"]}, "evaluator", 0), ["tasks of type evaluator", "only workers"]),
        (config({"worker": ["a:1", "b:1", "a:1"]}), ["the address a:1 to worker 0 and to worker 2"]),
        (config({"worker": ["b:1", "a:1"], "chief": ["a:1"]}), ["the address a:1 to chief 0 and to worker 1"]),
        (config({"worker": ["a:1", "b"]}), ["'b', which is not host:port"]),
        (config({"worker": ["a:1", "b:http"]}), ["'b:http', which is not host:port"]),
        (config({"worker": ["a:1", ":80"]}), ["':80', which is not host:port"]),
        (config({"worker": ["a:1", 80]}), ["80, which is not host:port"]),
        (config({"worker": ["a:1", None]}), ["None, which is not host:port"]),
        (config({"worker": ["a:1", "b:-1"]}), ["'b:-1', which is not host:port"]),
        (config({"worker": ["a:1", "b:1.5"]}), ["'b:1.5', which is not host:port"]),
        (config({"worker": ["a:1", "b:²"]}), ["'b:²', which is not host:port"]),
        (config({"worker": ["a:1", "b:1 "]}), ["'b:1 ', which is not host:port"]),
        (config({"worker": ["a:1", "b c:1"]}), ["'b c:1', which is not host:port"]),
        (config({"worker": ["a:1", "grpc://b:1"]}), ["'grpc://b:1', which is not host:port"]),
        (config({"worker": ["a:1", "::1:2222"]}), ["'::1:2222', which is not host:port"]),
        (config({"worker": ["a:1", "b:0"]}), ["'b:0', whose port is not one of 1 to 65535"]),
        (config({"worker": ["a:1", "b:65536"]}), ["'b:65536', whose port is not one of 1 to 65535"]),
    ],
)
def test_what_is_wrong_is_named(text: str, said: list[str]) -> None:
    with pytest.raises(LauncherError) as caught:
        read_tf_config({"TF_CONFIG": text})
    message = str(caught.value)
    assert "TF_CONFIG" in message
    assert all(part in message for part in said), message


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"cluster": {"worker": ["a:1"]}}'])
def test_the_message_shows_what_it_should_look_like(text: str) -> None:
    with pytest.raises(LauncherError) as caught:
        read_tf_config({"TF_CONFIG": text})
    example = str(caught.value)[str(caught.value).index('{"cluster"') :]
    cluster = read_tf_config({"TF_CONFIG": example})
    assert cluster is not None
    assert cluster.worker.world_size == 2
