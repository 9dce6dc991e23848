"""`farandole checkpoint info`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from small_training import content, data_folder, edit, net, prepare, sgd, step_lr, train
from torch import nn

from farandole.adapters import Progress, Strategy, latest
from farandole.cli.main import main


def info(*words: object) -> Result:
    return CliRunner().invoke(main, ["checkpoint", "info", *map(str, words)])


@pytest.fixture
def path(strategy: Strategy, tmp_path: Path) -> Path:
    training = prepare(strategy, net(), scheduler=step_lr)
    train(training, steps=1)
    training.save(tmp_path / "7", Progress(3, 2), {"best": 0.5, "history": [1]})
    return tmp_path / "7"


def test_what_is_in_it(path: Path) -> None:
    found = json.loads(info(path, "--json").stdout)
    tensors = found.pop("tensors")
    assert found.pop("saved_at").startswith("20")
    assert found == {
        "path": str(path),
        "whole": True,
        "problems": [],
        "framework": "torch",
        "strategy": "local",
        "world_size": 1,
        "progress": {"epoch": 3, "step": 2},
        "optimizer": "AdamW",
        "scheduler": "StepLR",
        "extras": ["best", "history"],
        "callbacks": [],
        "model_tensors": 9,
        "model_numel": 4 * 6 + 6 + 4 * 6 + 1 + 6 + 1,
        "files": 3,
        "bytes": sum(map(len, content(data_folder(path)).values())),
        "aliases": {},
    }
    assert tensors["model/0.weight"] == {"shape": [6, 4], "dtype": "float32"}
    assert tensors["optimizer/0.weight/exp_avg"] == {"shape": [6, 4], "dtype": "float32"}


def test_the_same_for_people(path: Path) -> None:
    result = info(path)
    assert result.exit_code == 0
    for words in (
        f"{path}: whole (sizes compared",
        "by local, 1 worker (torch)",
        "epoch 3, step 2",
        "62 numbers (parameters and buffers) in 9 tensors (float32, int64)",
        "AdamW, 98 numbers in 12 tensors",
        "StepLR",
        "best, history",
    ):
        assert words in result.stdout
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("0.weight"))
    assert line.split(None, 4) == ["0.weight", "(6,", "4)", "float32", "exp_avg, exp_avg_sq"]


def test_many_tensors_are_summed_up_unless_all_are_asked_for(strategy: Strategy, tmp_path: Path) -> None:
    prepare(strategy, nn.Sequential(*(nn.Linear(1, 1) for _ in range(15))), sgd).save(tmp_path / "1", Progress())
    assert "and 10 more: --all lists them" in info(tmp_path / "1").stdout
    everything = info(tmp_path / "1", "--all").stdout
    assert "more" not in everything
    assert all(f"\n{number}.weight " in everything for number in range(15))


def test_checksums_are_compared_when_asked(path: Path) -> None:
    assert "all checksums compared" in info(path, "--verify").stdout
    file = data_folder(path) / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    assert info(path).exit_code == 0
    result = info(path, "--verify", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert not found["whole"]
    assert found["problems"] == [f"{file} is damaged: its checksum is another, so its bytes changed"]


@pytest.mark.parametrize("how", ["missing", "shorter", "no manifest", "newer"])
def test_what_is_not_whole_is_said_and_is_the_exit_code(path: Path, how: str) -> None:
    file = data_folder(path) / "objects.pt"
    if how == "missing":
        file.unlink()
    elif how == "shorter":
        file.write_bytes(file.read_bytes()[:-1])
    elif how == "newer":
        edit(path, format=99)
    else:
        (path / "manifest.json").unlink()
    result = info(path)
    assert result.exit_code == 1
    assert f"{path}: not whole" in result.stdout
    expected = {
        "missing": f"{file} is missing",
        "shorter": f"{file} is damaged: it has",
        "no manifest": "no save to it was ever finished",
        "newer": "has format 99, newer than",
    }
    assert expected[how] in result.stdout
    assert not json.loads(info(path, "--json").stdout)["whole"]


def test_a_folder_of_checkpoints(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy, net())
    runs = tmp_path / "runs"
    for number in (8, 10, 7, 9):  # the latest does not depend on when they were saved
        training.save(runs / str(number), Progress(number, 0))
    (data_folder(runs / "10") / "objects.pt").unlink()
    (runs / "8" / "manifest.json").unlink()
    (runs / "notes").mkdir()
    result = info(runs)
    assert result.exit_code == 0
    lines = {line.split()[0]: line for line in result.stdout.splitlines()[:6] if line.startswith(str(runs))}
    states = {"7": "whole", "8": "not whole", "9": "latest", "10": "not whole"}
    for name, state in states.items():
        assert lines[f"{runs}/{name}"].split(None, 1)[1].startswith(state)
    found = json.loads(info(runs, "--json").stdout)
    assert found["latest"] == latest(runs) == f"{runs}/9"
    whole = {checkpoint["path"]: checkpoint["whole"] for checkpoint in found["checkpoints"]}
    assert whole == {f"{runs}/{name}": name in ("7", "9") for name in ("7", "8", "9", "10")}
    for name in ("7", "9"):
        (runs / name / "manifest.json").unlink()
    nothing = info(runs)
    assert (nothing.exit_code, "None of them can be loaded." in nothing.stdout) == (1, True)


def test_a_url_will_do(strategy: Strategy) -> None:
    prepare(strategy, net()).save("memory://info/1", Progress(1, 0))
    assert json.loads(info("memory://info/1", "--json").stdout)["progress"] == {"epoch": 1, "step": 0}
    assert json.loads(info("memory://info", "--json").stdout)["latest"] == latest("memory://info")


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    missing = info(tmp_path / "x")
    assert (missing.exit_code, missing.stderr) == (1, f"Error: {tmp_path}/x is not there\n")
    empty = info(tmp_path)
    assert (empty.exit_code, f"{tmp_path} is not a checkpoint" in empty.stderr) == (1, True)


def test_no_framework_is_imported(path: Path) -> None:
    """Neither for help nor for looking at one."""
    program = (
        "import sys; from farandole.cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('torch' in sys.modules, 'numpy' in sys.modules, file=sys.stderr)"
    )
    for words in (["checkpoint", "convert", "--help"], ["checkpoint", "info", "--verify", str(path)]):
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr.split()[:1]) == (0, ["False"]), done.stderr
