"""Checkpoints in memory, and on S3 as moto serves it on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from small_training import failure, net, prepare, snapshot, train

from farandole.adapters import Progress, Strategy, latest
from farandole.adapters.torch.checkpoint import CheckpointReader


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A bucket on its own server."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    endpoint = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.delenv(name, raising=False)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and server.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket/runs"
    server.terminate()
    server.wait(timeout=10)


@pytest.fixture(params=["local", "file", "memory", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        base = str(request.getfixturevalue("s3"))
        fs = fsspec.filesystem("s3")
        if fs.exists(base):
            fs.rm(base, recursive=True)
        return base
    if request.param == "memory":
        fsspec.filesystem("memory").store.clear()
        return "memory://runs"
    return str(tmp_path / "runs") if request.param == "local" else f"file://{tmp_path}/runs"


def files(folder: str) -> set[str]:
    """Return all files in a folder, with `data-...` for a data folder's name."""
    fs, root = fsspec.core.url_to_fs(folder)
    fs.invalidate_cache()
    parts = [name.removeprefix(root).strip("/").split("/") for name in fs.find(root)]
    return {"/".join("data" if part.startswith("data-") else part for part in name) for name in parts}


WHOLE = ("manifest.json", "data/__0_0.distcp", "data/objects.pt", "data/part-0.json")


def those_of(*names: str) -> set[str]:
    return {f"{name}/{file}" for name in names for file in WHOLE}


@pytest.mark.parametrize("wait", [True, False])
def test_a_training_comes_back(strategy: Strategy, folder: str, wait: bool) -> None:
    whole = prepare(strategy, net())
    _, progress = train(whole, steps=3)
    before = snapshot(whole)
    whole.save(f"{folder}/first", progress, {"best": 1}, wait=wait)
    whole.load(f"{folder}/first")  # which waits for it
    assert files(folder) == those_of("first")
    resumed = prepare(strategy, net(1))
    assert resumed.load(f"{folder}/first") == progress
    assert snapshot(resumed) == before
    assert train(resumed, progress) == train(whole, progress)


def test_a_save_replaces_the_one_before(strategy: Strategy, folder: str) -> None:
    training = prepare(strategy, net())
    training.save(folder, Progress(0, 1))
    training.save(folder, Progress(0, 2))
    assert files(folder) == set(WHOLE)
    assert training.load(folder) == Progress(0, 2)
    assert latest(folder) == folder


def test_the_newest_is_found_and_old_ones_go(strategy: Strategy, folder: str) -> None:
    training = prepare(strategy, net())
    for step in range(4):
        training.save(f"{folder}/{step}", Progress(0, step), keep=2)
    assert files(folder) == those_of("2", "3")
    assert latest(folder) == f"{folder}/3"
    fs, root = fsspec.core.url_to_fs(folder)
    fs.rm_file(f"{root}/3/manifest.json")
    assert latest(folder) == f"{folder}/2"
    assert f"{folder}/3 has no manifest.json" in failure(lambda: training.load(f"{folder}/3"))
    training.save(f"{folder}/4", Progress(1, 0), keep=1)
    assert files(folder) == those_of("4")


def test_a_checkpoint_that_is_not_there_is_named(strategy: Strategy, folder: str) -> None:
    assert latest(folder) is None
    assert f"{folder}/no is not there" in failure(lambda: prepare(strategy, net()).load(f"{folder}/no"))


def test_damage_is_found(strategy: Strategy, folder: str) -> None:
    training = prepare(strategy, net())
    training.save(folder, Progress())
    fs, root = fsspec.core.url_to_fs(folder)
    data = CheckpointReader(folder).manifest.data
    content = bytearray(fs.cat_file(f"{root}/{data}/__0_0.distcp"))
    content[len(content) // 2] ^= 1
    fs.pipe_file(f"{root}/{data}/__0_0.distcp", bytes(content))
    assert f"{folder}/{data}/__0_0.distcp is damaged" in failure(lambda: training.load(folder))
    fs.rm_file(f"{root}/{data}/__0_0.distcp")
    assert f"{folder}/{data}/__0_0.distcp is missing" in failure(lambda: training.load(folder))
    assert latest(folder) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere://bucket/run", "Protocol not known: nowhere"), ("gs://bucket/run", "gcsfs")],
)
def test_a_url_that_leads_nowhere_is_refused(strategy: Strategy, path: str, said: str) -> None:
    training = prepare(strategy, net())
    message = failure(lambda: training.save(path, Progress()))
    assert path in message and said in message
    assert said in failure(lambda: training.load(path))


def test_a_bucket_is_not_made(strategy: Strategy, s3: str) -> None:
    message = failure(lambda: prepare(strategy, net()).save("s3://typo/run", Progress()))
    assert "cannot save to s3://typo/run" in message and "does not exist" in message
    assert fsspec.filesystem("s3").ls("") == ["bucket"]
