"""Checkpoints one after the other: written during training, found again, and removed when they are old."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from small_training import content, data_folder, edit, failure, net, prepare, snapshot, train

from farandole.adapters import CheckpointError, OptionError, Progress, Strategy, create_strategy, latest
from farandole.adapters.checkpoint.manifest import read_manifest
from farandole.adapters.checkpoint.storage import Storage

WIDE = 10_000


def test_a_save_that_does_not_wait_holds_the_state_of_its_moment(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy, net(width=WIDE))
    _, progress = train(training, steps=1)
    before = snapshot(training)
    training.save(tmp_path / "it", progress, {"best": 1}, wait=False)
    train(training, progress, steps=2)
    assert snapshot(training) != before
    assert training.load(tmp_path / "it") == progress
    assert snapshot(training) == before
    assert training.extras == {"best": 1}


def test_saves_that_do_not_wait_come_one_after_the_other(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy, net(width=WIDE))
    for step in range(4):
        training.save(tmp_path / f"step-{step}", Progress(0, step), wait=False)
        others = [thread for thread in threading.enumerate() if thread.name == "farandole-save"]
        assert len(others) <= 1
        assert latest(tmp_path) in (None, *(str(tmp_path / f"step-{earlier}") for earlier in range(step + 1)))
        assert all((tmp_path / f"step-{earlier}" / "manifest.json").exists() for earlier in range(step))
    training.save(tmp_path / "last", Progress(1, 0))
    assert latest(tmp_path) == str(tmp_path / "last")
    assert prepare(strategy, net(width=WIDE)).load(tmp_path / "step-3") == Progress(0, 3)


def test_a_clock_that_was_set_back_decides_nothing(
    strategy: Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(strategy, net())
    for step in (1, 2):
        training.save(tmp_path / f"step-{step}", Progress(0, step))
    monkeypatch.setattr("farandole.adapters.checkpoint.manifest.time.time_ns", lambda: 10**18)
    monkeypatch.setattr("farandole.adapters.checkpoint.folder.now", lambda: "2001-09-09T01:46:40.000000+00:00")
    training.save(tmp_path / "step-3", Progress(0, 3), keep=2)
    assert latest(tmp_path) == str(tmp_path / "step-3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-3"]


def test_a_run_that_begins_again_from_an_earlier_one_is_told_of_the_further_one(
    strategy: Strategy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    training = prepare(strategy, net())
    training.save(tmp_path / "step-3", Progress(0, 3))
    assert latest(tmp_path) == str(tmp_path / "step-3") and not caplog.records
    training.save(tmp_path / "step-2", Progress(0, 2), keep=1)
    assert latest(tmp_path) == str(tmp_path / "step-3")
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"step-3 is loaded, Progress(epoch=0, step=3); {tmp_path}/step-2 was saved after it" in told


def test_what_began_again_from_an_earlier_one_comes_after_what_was_given_up(
    strategy: Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    training = prepare(strategy, net())
    for step in (2, 8, 9):
        training.save(tmp_path / f"step-{step}", Progress(0, step))
    monkeypatch.setattr(
        "farandole.adapters.checkpoint.manifest.time.time_ns", lambda: 10**18
    )  # whatever the clock says
    again = prepare(strategy, net())
    assert again.load(tmp_path / "step-2") == Progress(0, 2)
    again.save(tmp_path / "step-3", Progress(0, 3), keep=2)
    assert latest(tmp_path) == str(tmp_path / "step-3") and not caplog.records
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-9"]
    again.save(tmp_path / "step-4", Progress(0, 4), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-4"]
    third = prepare(strategy, net())
    third.load(tmp_path / "step-4")
    third.save(tmp_path / "step-5", Progress(0, 5))
    assert [read_manifest(Storage(tmp_path / f"step-{step}")).attempt for step in (3, 4, 5)] == [1, 1, 2]
    fourth = prepare(strategy, net())
    fourth.load(tmp_path / "step-3")
    fourth.save(tmp_path / "step-4b", Progress(0, 4))
    assert latest(tmp_path) == str(tmp_path / "step-4b"), "an older attempt began again, after two more"


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    """A path under which nothing can be written; only writing finds it out."""
    path = tmp_path / "blocked"
    path.mkdir()
    (path / "manifest.json").mkdir()
    return path


def raised_by_a_save(strategy: Strategy, path: Path, blocked: Path) -> str:
    training = prepare(strategy, net())
    training.save(blocked, Progress(), wait=False)
    message = failure(lambda: training.save(path, Progress(1, 1)))
    assert not path.exists()
    training.save(path, Progress(1, 1))  # it is raised once
    return message


def raised_by_a_load(strategy: Strategy, path: Path, blocked: Path) -> str:
    training = prepare(strategy, net())
    training.save(path, Progress(1, 1))
    training.save(blocked, Progress(), wait=False)
    return failure(lambda: training.load(path))


@pytest.mark.parametrize("raised", [raised_by_a_save, raised_by_a_load])
def test_a_save_that_fails_in_the_background_is_told_of(
    strategy: Strategy, tmp_path: Path, in_the_way: Path, raised: Callable[[Strategy, Path, Path], str]
) -> None:
    path = tmp_path / "good"
    assert f"cannot save to {in_the_way} (worker 0): IsADirectoryError" in raised(strategy, path, in_the_way)
    assert [file.name for file in in_the_way.iterdir()] == ["manifest.json"]
    assert prepare(strategy, net(1)).load(path) == Progress(1, 1)


def test_a_save_that_fails_in_the_background_is_told_of_when_leaving(
    no_launcher: None, one_thread: None, in_the_way: Path
) -> None:
    def leave() -> None:
        with create_strategy("local", device="cpu") as strategy:
            prepare(strategy, net()).save(in_the_way, Progress(), wait=False)

    assert f"cannot save to {in_the_way} (worker 0): IsADirectoryError" in failure(leave)
    assert [file.name for file in in_the_way.iterdir()] == ["manifest.json"]


def test_leaving_waits_until_it_is_saved(no_launcher: None, one_thread: None, tmp_path: Path) -> None:
    with create_strategy("local", device="cpu") as strategy:
        prepare(strategy, net(width=WIDE)).save(tmp_path, Progress(2, 0), wait=False)
    assert latest(tmp_path) == str(tmp_path)


def test_an_error_of_the_users_is_not_hidden_by_a_save_that_fails(
    no_launcher: None, one_thread: None, in_the_way: Path
) -> None:
    def fail() -> None:
        with create_strategy("local", device="cpu") as strategy:
            prepare(strategy, net()).save(in_the_way, Progress(), wait=False)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


@pytest.fixture
def series(strategy: Strategy, tmp_path: Path) -> list[Path]:
    """Five checkpoints in a folder, oldest first; their names do not show the order."""
    folder = tmp_path / "series"
    paths = [folder / name for name in ("c", "e", "a", "d", "b")]
    training = prepare(strategy, net())
    for number, path in enumerate(paths):
        training.save(path, Progress(0, number))
    return paths


def whole(folder: Path) -> set[str]:
    return {file.parent.name for file in folder.glob("*/manifest.json")}


def test_latest_finds_the_newest(strategy: Strategy, series: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = series[0].parent
    assert latest(folder) == latest(str(folder)) == str(series[-1])
    assert prepare(strategy, net()).load(latest(folder) or "") == Progress(0, 4)
    prepare(strategy, net()).save(series[1], Progress(0, 9))
    assert latest(folder) == str(series[1])
    monkeypatch.chdir(folder.parent)
    assert latest("series") == "series/e"
    assert latest("series/c") == "series/c"


def test_latest_of_a_folder_without_any_is_none(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    assert latest(tmp_path) is None
    assert latest(tmp_path / "nowhere") is None
    assert latest(tmp_path / "mine" / "file") is None


def without_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def with_a_damaged_manifest(path: Path) -> None:
    (path / "manifest.json").write_text((path / "manifest.json").read_text()[:100])


def without_a_file(path: Path) -> None:
    (data_folder(path) / "__0_0.distcp").unlink()


def without_data(path: Path) -> None:
    shutil.rmtree(data_folder(path))


def with_a_shorter_file(path: Path) -> None:
    file = data_folder(path) / "objects.pt"
    file.write_bytes(file.read_bytes()[:-1])


TEAR = [without_manifest, with_a_damaged_manifest, without_a_file, without_data, with_a_shorter_file]


@pytest.mark.parametrize("tear", TEAR)
def test_latest_passes_over_torn_ones(series: list[Path], tear: Callable[[Path], None]) -> None:
    tear(series[-1])
    assert latest(series[0].parent) == str(series[-2])
    assert latest(series[-1]) is None


def test_latest_refuses_to_choose_an_older_one_than_it_can_read(series: list[Path]) -> None:
    edit(series[-1], format=3)
    with pytest.raises(CheckpointError, match="newer than this Farandole's 2"):
        latest(series[0].parent)


def test_latest_imports_no_framework() -> None:
    script = "import sys; from farandole.adapters import latest; latest('.'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize(("keep", "left"), [(1, set()), (3, {"b", "d"}), (99, set("abcde"))])
def test_keep_leaves_the_newest(strategy: Strategy, series: list[Path], keep: int, left: set[str], wait: bool) -> None:
    folder = series[0].parent
    training = prepare(strategy, net())
    training.save(folder / "new", Progress(1, 0), wait=wait, keep=keep)
    training.load(folder / "new")
    assert whole(folder) == {path.name for path in folder.iterdir()} == left | {"new"}


def test_keep_counts_a_checkpoint_that_is_replaced_once(strategy: Strategy, series: list[Path]) -> None:
    folder = series[0].parent
    prepare(strategy, net()).save(folder / "a", Progress(1, 0), keep=2)
    assert whole(folder) == {"a", "b"}


@pytest.mark.parametrize("tear", TEAR)
def test_keep_removes_torn_ones_too_and_does_not_count_them(
    strategy: Strategy, series: list[Path], tear: Callable[[Path], None]
) -> None:
    folder = series[0].parent
    tear(series[-1])
    prepare(strategy, net()).save(folder / "new", Progress(1, 0), keep=2)
    assert {path.name for path in folder.iterdir()} == {"d", "new"}


def test_keep_leaves_alone_what_is_not_ours_or_newer(strategy: Strategy, series: list[Path]) -> None:
    folder = series[0].parent
    (folder / "mine").mkdir()
    (folder / "mine" / "manifest.json").write_text('{"name": "an app"}')
    (series[0] / "notes.txt").write_text("mine")
    (folder / "data-0123456789abcdef").mkdir()
    (folder / "torn-later" / "data-ffffffffffffffff").mkdir(parents=True)
    edit(series[1], format=3)
    before = content(series[1])
    prepare(strategy, net()).save(folder / "new", Progress(1, 0), keep=1)
    names = {path.name for path in folder.iterdir()}
    assert names == {"mine", "c", "e", "new", "data-0123456789abcdef", "torn-later"}
    assert json.loads((folder / "mine" / "manifest.json").read_text()) == {"name": "an app"}
    assert content(series[0]) == {"notes.txt": b"mine"}
    assert content(series[1]) == before


@pytest.mark.parametrize("keep", [0, -1])
def test_keep_must_be_positive(strategy: Strategy, tmp_path: Path, keep: int) -> None:
    with pytest.raises(OptionError, match=f"keep={keep} must be at least 1"):
        prepare(strategy, net()).save(tmp_path, Progress(), keep=keep)
    assert list(tmp_path.iterdir()) == []
