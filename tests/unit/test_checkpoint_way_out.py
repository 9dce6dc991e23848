"""However a program ends right after a save that does not wait, the save is whole or reported as lost."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from small_training import data_folder

from farandole.adapters import Progress, Strategy, latest
from farandole.adapters.checkpoint.background import Background
from farandole.adapters.checkpoint.manifest import Manifest, Part, write_part
from farandole.adapters.checkpoint.save import Save
from farandole.adapters.checkpoint.storage import Storage
from farandole.adapters.worker import Worker

PROGRAM = Path(__file__).with_name("way_out_program.py")
SIGINT, SIGTERM = -2, 143
WHOLE = {  # the exit code of each way out with a whole save
    "return": 0,
    "exit0": 0,
    "exit1": 1,
    "raise": 1,
    "interrupt": SIGINT,
    "sigterm_in_engine": SIGTERM,
    "sigterm_of_child": 0,
    "child_that_stays": 0,
    "own_handler": 3,
    "never_left": 0,
    "generator": 1,
}
LOST = {"return": 1, "exit0": 1, "exit1": 1, "raise": 1, "sigterm": SIGTERM, "never_left": 1, "leaving_fails": 1}
BOUND = 15  # seconds for a way out that waits one second, when all run together; the disk takes 20


class Ended:
    """How each way out ended: exit code and seconds, output, and folder."""

    def __init__(self, folder: Path) -> None:
        asked = [*(f"{way}:local" for way in (*WHOLE, "os_exit")), *(f"{way}:slow" for way in LOST)]
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
        program = subprocess.run(
            [sys.executable, str(PROGRAM), str(folder), *asked],
            env=environ,
            stdout=subprocess.PIPE,
            text=True,
            timeout=100,
        )
        rows = [line.split() for line in program.stdout.splitlines()]
        self.codes = {name: int(code) for name, code, _ in rows}
        self.seconds = {name: float(seconds) for name, _, seconds in rows}
        self._folder = folder

    def path(self, way: str, storage: str) -> Path:
        return self._folder / f"{way}-{storage}"

    def output(self, way: str, storage: str) -> str:
        return Path(f"{self.path(way, storage)}.output").read_text()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    return Ended(tmp_path_factory.mktemp("ways"))


@pytest.mark.parametrize("way", WHOLE)
def test_what_can_be_written_in_time_is_whole(ended: Ended, strategy: Strategy, way: str) -> None:
    output = ended.output(way, "local")
    assert ended.codes[f"{way}:local"] == WHOLE[way], output
    assert "lost" not in output
    assert prepare_as_saved(strategy).load(ended.path(way, "local")) == Progress(0, 2), output


@pytest.mark.parametrize("way", LOST)
def test_what_cannot_is_said_to_be_lost(ended: Ended, strategy: Strategy, way: str) -> None:
    output, path = ended.output(way, "slow"), ended.path(way, "slow")
    assert ended.codes[f"{way}:slow"] == LOST[way], output
    assert f"cannot save to slow://{path} (worker 0): its part was not written within 1 s" in output
    if way in ("raise", "leaving_fails"):
        assert output.strip().endswith("ValueError: the user's mistake")  # not hidden by what was lost
    assert ended.seconds[f"{way}:slow"] < BOUND
    assert prepare_as_saved(strategy).load(path) == Progress(0, 1)


def test_a_process_that_could_not_speak_is_told_of_by_who_comes_next(
    ended: Ended, strategy: Strategy, caplog: pytest.LogCaptureFixture
) -> None:
    path = ended.path("os_exit", "local")
    assert ended.codes["os_exit:local"] == 0
    (torn,) = {folder.name for folder in path.glob("data-*")} - {data_folder(path).name}
    caplog.set_level(logging.WARNING, "farandole")
    assert prepare_as_saved(strategy).load(path) == Progress(0, 1)
    assert latest(path) == str(path)
    said = f"{path}/{torn} is torn, its save was not finished; the one before it is loaded: {path}, {Progress(0, 1)}"
    assert [record.message for record in caplog.records] == [said, said]


def prepare_as_saved(strategy: Strategy) -> Any:
    model = torch.nn.Linear(500, 500)
    return strategy.prepare(model, torch.optim.AdamW(model.parameters()), lambda model, batch: model(batch).mean())


class Part0(Save):
    """An empty save, whose workers are threads, with `write` as its writer."""

    framework = "torch"

    def __init__(self, path: Path | str, rank: int, write: Any) -> None:
        self._storage = Storage(path)
        self._worker = Worker(rank, 2)
        self._keep = None
        self._act = write
        self.manifest = Manifest("torch", "x", 2, "", Progress(0, 2), {}, "none", "none", {}, DATA, {}, {})

    def begin(self, progress: Progress, extras: Mapping[str, Any] | None) -> tuple[Manifest | None, Any]:
        return self.manifest, None

    def stage(self, found: list[Any], copy: bool) -> None:
        self._storage.folder(DATA).make()

    def write(self) -> None:
        self._act()
        write_part(self._storage, DATA, self.rank, Part({}, {}, {}))


DATA = "data-0123456789abcdef"


def full() -> None:
    raise OSError("no space left")


def in_a_moment() -> None:
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (in_a_moment, (None, None)),
        (full, ("worker 1 could not write its part: OSError: no space left", "OSError: no space left")),
        (None, ("worker 1 has not written its part", None)),
    ],
    ids=["late", "full", "gone"],
)
def test_worker_0_finds_what_the_others_wrote(tmp_path: Path, how: Any, said: tuple[str | None, str | None]) -> None:
    """Without a collective: the other worker may have left, or be waiting in another one."""
    saves = [Part0(tmp_path, 0, lambda: None), Part0(tmp_path, 1, how)]
    saves[0].stage([], True)
    workers = [Background(save, str(tmp_path), DATA) for save in saves[: 1 if how is None else 2]]
    deadline = time.monotonic() + (0.3 if how is None else 10)
    for rank in reversed(range(len(workers))):
        failure = workers[rank].finish(deadline)
        reason = said[rank]
        assert failure == (None if reason is None else f"cannot save to {tmp_path} (worker {rank}): {reason}")
    assert (tmp_path / "manifest.json").exists() == (said[0] is None)
    assert not [thread for thread in threading.enumerate() if thread.name == "farandole-save" and said[0] is None]


class GoneDisk(LocalFileSystem):  # type: ignore[misc]
    protocol = "gone"

    def find(self, *arguments: Any, **options: Any) -> Any:
        raise OSError("no such device")

    ls = find


def test_storage_that_is_gone_does_not_hide_why(tmp_path: Path) -> None:
    fsspec.register_implementation("gone", GoneDisk, clobber=True)
    save = Part0(f"gone://{tmp_path}", 0, full)
    assert Background(save, "here", DATA).finish(time.monotonic() + 10) == (
        "cannot save to here (worker 0): OSError: no space left"
    )
