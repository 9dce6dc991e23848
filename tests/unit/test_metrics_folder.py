"""A run's folder: its records, its name, its attempts, and who may write it."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from farandole.adapters import OptionError
from farandole.plugins.metrics.folder import Claimed, Reader, RunFolder, claim
from farandole.plugins.metrics.records import (
    Across,
    Event,
    Logged,
    Record,
    Spread,
    Straggler,
    Window,
    Workers,
    from_line,
    to_line,
)

AT = {"attempt": 1, "rank": 2, "time": 1.5, "epoch": 3, "step": 40}
WINDOW = Window(**AT, steps=10, samples=640, values={"step_ms": Spread(1.0, 3.0, 2.5), "loss": Spread.of(math.inf)})
RECORDS: list[Record] = [
    WINDOW,
    Window(**AT, steps=10, tokens=-math.inf, values={}),
    Logged(**AT, values={"accuracy": -math.inf, "<b>": 1}),
    Workers(**AT, steps=10, values={"wait_ms": Across(1.0, 2.0, 3.0, 0.5)}),
    Workers(**AT, steps=10, values={}, straggler=Straggler(3, "data", 0.25, "critical", 900.0)),
    Event(**AT, event="world_size", text="3 workers", details={"from": 2}),
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_record_is_read_back_from_its_line(record: Record) -> None:
    line = to_line(record)
    assert "\n" not in line and from_line(line) == record
    json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_is_not_a_number_is_read_back() -> None:
    record = from_line(to_line(Logged(**AT, values={"loss": math.nan})))
    assert isinstance(record, Logged) and math.isnan(record.values["loss"])


@pytest.mark.parametrize("line", ["", "{", "[]", "7", '{"kind": "other"}', '{"kind": "window"}', to_line(WINDOW)[:-9]])
def test_a_torn_or_unknown_line_is_none(line: str) -> None:
    assert from_line(line) is None
    assert from_line('{"new":1,' + to_line(WINDOW)[1:]) == WINDOW, "a later version may add to records"


def claimed(wanted: Path | None, base: Path, run: str | None = None) -> Claimed:
    return claim(wanted, run, base, {"world_size": 2})


def test_new_runs_are_numbered(tmp_path: Path) -> None:
    first, second = claimed(None, tmp_path / "runs"), claimed(None, tmp_path / "runs")
    assert [each.folder.path.name for each in (first, second)] == ["1", "2"]
    (tmp_path / "runs" / "9").mkdir()
    third = claimed(None, tmp_path / "runs")
    assert third.folder.path.name == "10" and (third.attempt, third.notes) == (0, ())
    assert len({each.run for each in (first, second, third)}) == 3


def test_a_run_goes_on_in_its_folder(tmp_path: Path) -> None:
    first = claimed(tmp_path / "a" / "run", tmp_path)
    assert first.lock is not None and not first.earlier
    first.folder.change(lambda info: info.update(sinks={"Comet": {"key": "k"}}))
    first.lock.release()
    second = claimed(tmp_path / "a" / "run", tmp_path, first.run)
    assert (second.run, second.attempt, second.folder.path) == (first.run, 1, first.folder.path)
    assert second.earlier["sinks"] == {"Comet": {"key": "k"}}
    info = second.folder.info()
    assert [each["world_size"] for each in info["attempts"]] == [2, 2] and info["sinks"] == second.earlier["sinks"]
    assert info["started"] == info["attempts"][0]["started"] <= info["attempts"][1]["started"]


def test_another_runs_folder_is_left_alone(tmp_path: Path) -> None:
    first = claimed(tmp_path / "7", tmp_path)
    assert first.lock is not None
    first.lock.release()
    before = (tmp_path / "7" / "run.json").read_text()
    for name in ("7-2", "7-3"):
        other = claimed(tmp_path / "7", tmp_path, "another")
        assert other.folder.path == tmp_path / name and other.attempt == 0 and other.run != first.run
        (note,) = other.notes
        assert "7 is not written: it holds another run than the checkpoint's. This run is in" in note
    assert (tmp_path / "7" / "run.json").read_text() == before
    (tmp_path / "7" / "run.json").write_text("{")
    assert "cannot be read" in claimed(tmp_path / "7", tmp_path).notes[0]


@pytest.mark.parametrize("damage", ['"attempts": null', '"attempts": [7]', '"sinks": null', '"sinks": {"comet": 7}'])
def test_a_damaged_folder_is_left_alone(tmp_path: Path, damage: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "run.json").write_text(f'{{"format": 1, {damage}}}')
    made = claimed(tmp_path / "7", tmp_path)
    assert made.folder.path == tmp_path / "7-2" and "is damaged" in made.notes[0]


HOLDER = """
import sys, time
from pathlib import Path
from farandole.plugins.metrics.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_that_another_job_writes_is_left_alone(tmp_path: Path) -> None:
    first = claimed(tmp_path / "7", tmp_path)
    assert first.lock is not None
    first.lock.release()
    arguments = [sys.executable, "-c", HOLDER, str(tmp_path / "7" / "run.lock")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        other = claimed(tmp_path / "7", tmp_path, first.run)
        assert other.folder.path == tmp_path / "7-2"
        assert f"process {holder.pid} on " in other.notes[0]
        holder.kill()
    assert claimed(tmp_path / "7", tmp_path, first.run).attempt == 1, "its lock ended with it"


def test_where_nothing_can_be_written_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    found = claimed(tmp_path / "file" / "run", tmp_path)
    assert found.lock is None and found.folder.path == tmp_path / "file" / "run"
    assert "cannot write to" in found.notes[0]


def test_only_whole_lines_are_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"is not the folder of a run: it has no run\.json"):
        Reader(tmp_path)
    folder = RunFolder(tmp_path)
    claimed(tmp_path, tmp_path)
    reader = Reader(tmp_path)
    assert reader.poll() == []
    lines = [to_line(record) for record in RECORDS]
    with open(folder.worker_file(10), "w") as ten, open(folder.worker_file(2), "w") as two:
        print(lines[0], file=two)
        print(lines[1], file=ten)
        print(lines[2][:20], end="", file=ten, flush=True)
        two.flush()
        folder.workers_file.write_text(f"{lines[3]}\n")
        assert reader.poll() == [RECORDS[0], RECORDS[1], RECORDS[3]]
        print(lines[2][20:], file=ten, flush=True)
        assert reader.poll() == [RECORDS[2]] and reader.poll() == []
        print(f"{lines[0][:30]}\n{lines[0]}", file=ten, flush=True)
        assert reader.poll() == [RECORDS[0]], "a line that was torn by a crash is skipped"
    assert Reader(tmp_path).poll() == [RECORDS[0], RECORDS[1], RECORDS[2], RECORDS[0], RECORDS[3]]


def test_a_folder_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"format": 2}')
    with pytest.raises(OptionError, match="is not of format 1"):
        Reader(tmp_path)
