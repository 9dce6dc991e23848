"""Workers that leave a `fit`: how the job ends, and what became of the checkpoints that were asked for before."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
from broken_job import BOUND, Broken

PROGRAM = Path(__file__).with_name("keras_leave_program.py")
ENGINES = ("tf_multiworker", "tf_horovod")
ALL_LEAVE = ("return:all", "exit0:all", "exit1:all", "raise:all")  # after these the same workers begin another training
BY_DEFAULT = {"tf_multiworker": "exit0:1", "tf_horovod": "raise:0"}
WAYS = [f"{way}:{who}" for way in ("return", "exit0", "exit1", "raise", "term") for who in ("0", "1", "all")]

pytestmark = pytest.mark.timeout(150)


@pytest.mark.parametrize(
    ("strategy", "trainings"),
    [
        *((strategy, (*ALL_LEAVE, last)) for strategy, last in BY_DEFAULT.items()),
        *(
            pytest.param(strategy, (way,), marks=pytest.mark.exhaustive)
            for strategy in ENGINES
            for way in WAYS
            if way != BY_DEFAULT[strategy]
        ),
    ],
)
def test_workers_that_leave_a_fit(strategy: str, trainings: tuple[str, ...], tmp_path: Path) -> None:
    """The job succeeds if all leave without an error; a worker that leaves alone fails it. Nothing saved is lost."""
    run = [sys.executable, "-m", "farandole.cli.main", "run", "--strategy", strategy, "-n", "2"]
    broken = Broken([*run, str(PROGRAM), str(tmp_path), *trainings])
    told, output = broken.job.describe(), broken.job.output
    way, who = trainings[-1].split(":")
    assert (broken.job.returncode == 0) == (who == "all" and way in ("return", "exit0")), told
    assert broken.seconds < BOUND, told
    assert not broken.job.survivors, told
    assert "TRAINED" not in output and "lost: cannot save" not in output, told
    for training in trainings:
        place = tmp_path / training.replace(":", "-")
        assert json.loads((place / "saved/manifest.json").read_text())["progress"] == {"epoch": 1, "step": 2}, told
        assert zipfile.ZipFile(place / "epoch.keras").testzip() is None, told
    if way == "raise":
        assert output.rindex("ValueError: the mistake in the callback") > output.rfind("WorkerLostError"), told
    elif who != "all":
        assert "WorkerLostError" in output, told
