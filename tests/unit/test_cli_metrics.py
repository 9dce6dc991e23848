"""`farandole watch` and `farandole report`."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from recorded_run import Attempt, record_run
from rich.console import Console

from farandole.adapters.errors import OptionError
from farandole.cli.main import main
from farandole.cli.metrics.place import find_run
from farandole.cli.metrics.screen import Screen
from farandole.plugins.metrics import Reader

RESTARTED = (Attempt(4, 0, 200, "worker 3 was lost", error=True), Attempt(3, 150, 400), Attempt(4, 380, 500))


def invoke(*words: object) -> Result:
    return CliRunner().invoke(main, [*map(str, words)])


def drawn(folder: Path, height: int | None = None, colours: bool = False, width: int = 160) -> str:
    screen = Screen(folder, Reader(folder), colours)
    screen.update()
    out = Console(
        file=io.StringIO(), width=width, force_terminal=colours, color_system="truecolor" if colours else None
    )
    out.print(screen.draw(width, height))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


# Watch.


def test_the_straggler_comes_first(tmp_path: Path) -> None:
    lines = invoke("watch", "--once", record_run(tmp_path / "run", RESTARTED, slow=2)).stdout.splitlines()
    assert lines[0].split("  ")[1] == "4 workers, ddp, torchrun, 2 restarts"
    assert lines[1] == "step 500  epoch 0  5,565 samples a second  loss 0.1327"
    assert lines[2] == "straggler: worker 2: it waited for its data; 22 % of each step, 782 s an hour"
    assert [line.split()[0] for line in lines[6:10]] == ["2", "0", "1", "3"]
    assert lines[-1] == "step 380: another number of workers"
    assert "step 200: worker 3 was lost" in lines


def test_bars_have_the_lengths_of_the_phases(tmp_path: Path) -> None:
    line = drawn(record_run(tmp_path / "run", [Attempt(1, 0, 10)])).splitlines()[6]
    (bar,) = (word for word in line.split() if word.startswith("d"))
    counted = {letter: bar.count(letter) for letter in "dfbcuow"}
    assert len(bar) == 60 and sum(counted.values()) == 60
    assert counted["b"] == pytest.approx(60 * 17 / 36, abs=3) and counted["f"] == pytest.approx(60 * 10 / 36, abs=2)


def test_the_straggler_is_red(tmp_path: Path) -> None:
    text = drawn(record_run(tmp_path / "run", slow=3), colours=True)
    said, row = (line for line in text.splitlines() if "\x1b[1;31m" in line)
    assert "worker 3: it waited for its data" in said
    assert "█" in row and "3" in row


@pytest.mark.parametrize("width", [80, 100, 200])
def test_each_worker_has_one_line(tmp_path: Path, width: int) -> None:
    lines = drawn(record_run(tmp_path / "run", host="a-host-of-a-long-name", slow=0), width=width).splitlines()
    assert [line.split()[0] for line in lines[6:10]] == ["0", "1", "2", "3"]
    assert all("…" in line for line in lines[6:10])
    assert max(map(len, lines)) <= width


def test_many_workers_fit_the_terminal(tmp_path: Path) -> None:
    lines = drawn(record_run(tmp_path / "run", [Attempt(100, 0, 20)], slow=77, slow_from=10), height=30).splitlines()
    assert len(lines) <= 30
    assert lines[6].split()[0] == "77"
    assert "80 more workers, which wait longer" in lines


def test_a_name_cannot_drive_the_terminal(tmp_path: Path) -> None:
    text = drawn(record_run(tmp_path / "run", host="\x1b]0;me\x07[red]node"))
    assert "?]0;me?[red]node-0" in text


def test_a_new_attempt_shows_its_own_workers(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "run", RESTARTED[:1])
    screen = Screen(folder, Reader(folder), colours=False)
    screen.update()
    assert screen.ended
    record_run(folder, RESTARTED[:2])
    screen.update()
    out = Console(file=io.StringIO(), width=160)
    out.print(screen.draw(160))
    assert isinstance(out.file, io.StringIO)
    assert not screen.ended and "3 workers, ddp" in out.file.getvalue()
    assert len([line for line in out.file.getvalue().splitlines() if "node-" in line]) == 3


@pytest.mark.timeout(30)
def test_it_ends_with_the_run(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "run", [Attempt(2, 0, 100)])
    ending = threading.Timer(0.5, record_run, (folder, [Attempt(2, 0, 100, "the training ended")]))
    ending.start()
    result = invoke("watch", folder)
    ending.join()
    assert result.exit_code == 0, result.output
    assert "the training ended" in result.stdout


def test_before_the_first_window(tmp_path: Path) -> None:
    assert "nothing measured yet" in invoke("watch", "--once", record_run(tmp_path / "run", [Attempt(2, 0, 0)])).stdout


# Report.


def test_the_page_is_written_into_the_folder(tmp_path: Path) -> None:
    folder = record_run(tmp_path / "run")
    result = invoke("report", folder)
    page = folder / "report.html"
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{page}: ")
    assert page.read_text().startswith("<!doctype html>")
    assert invoke("report", folder, "--out", tmp_path / "mine.html").exit_code == 0
    assert (tmp_path / "mine.html").read_text() == page.read_text()


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    result = invoke("report", record_run(tmp_path / "run"), "--out", tmp_path / "nowhere" / "page.html")
    assert result.exit_code == 1
    assert "No such file or directory; name another file with --out" in result.stderr


def test_the_newest_run_of_a_folder(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        os.utime(record_run(tmp_path / str(number), [Attempt(1, 0, 10)]) / "run.json", (number % 3, number % 3))
    assert find_run(tmp_path) == tmp_path / "2"
    assert find_run(tmp_path / "3") == tmp_path / "3"


@pytest.mark.parametrize("command", ["watch", "report"])
def test_what_is_no_run_is_refused(command: str, tmp_path: Path) -> None:
    result = invoke(command, tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "nowhere is not the folder of a run" in result.stderr
    with pytest.raises(OptionError):
        find_run(tmp_path)
