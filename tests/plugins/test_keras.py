"""`fit` on several workers against stock Keras in one process, and what else a distributed model promises."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from farandole.plugins.launch.job import JobResult, run_job

FOLDER = Path(__file__).parent
PROGRAM, CHECKS_PROGRAM = FOLDER / "keras_program.py", FOLDER / "keras_checks.py"
SCENARIOS = re.findall(r"@scenario\ndef (\w+)", (FOLDER / "keras_scenarios.py").read_text())
CHECKS = re.findall(r"@check\ndef (\w+)", CHECKS_PROGRAM.read_text())
ON_THREE = ("arrays", "empty_shares", "shuffled_dataset")  # shares that differ more, and are empty more often
BOUND = 1e-5
# What TensorFlow cannot do inside of its strategy is refused there, with the way out.
REFUSED = {("tf_multiworker", "steps_per_execution"), ("tf_multiworker", "gradient_accumulation_steps")}
ENGINES = ("tf_multiworker", "tf_horovod")

Run = Callable[..., JobResult]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what stock Keras finds in one process."""
    folder = tmp_path_factory.mktemp("keras")
    stock = subprocess.run([sys.executable, PROGRAM, folder], capture_output=True, text=True, timeout=200)
    assert stock.returncode == 0, stock.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Run:
    """A job of all scenarios, or of a few on three workers."""

    @cache
    def run(strategy: str, workers: int) -> JobResult:
        names = SCENARIOS if workers == 2 else ON_THREE
        return run_job(strategy, workers, [str(PROGRAM), str(folder), *names], timeout=200)

    return run


@pytest.mark.parametrize(
    ("workers", "scenario"), [*((2, scenario) for scenario in SCENARIOS), *((3, scenario) for scenario in ON_THREE)]
)
@pytest.mark.parametrize("strategy", ENGINES)
def test_fit_is_that_of_one_process(fitted: Run, folder: Path, strategy: str, workers: int, scenario: str) -> None:
    job = fitted(strategy, workers)
    for rank in range(workers):
        path = folder / f"{strategy}-{workers}" / scenario / f"result-{rank}.json"
        assert path.exists(), job.describe()
        result: Any = json.loads(path.read_text())
        if (strategy, scenario) in REFUSED:
            assert scenario in result
            assert "tf_horovod" in result
        else:
            assert isinstance(result, dict), result
            assert max(result.values()) <= BOUND, result


@pytest.mark.parametrize("strategy", ENGINES)
def test_files_are_written_by_one_worker(fitted: Run, folder: Path, strategy: str) -> None:
    job = fitted(strategy, 2)
    assert job.returncode == 0, job.describe()
    assert not job.survivors, job.describe()
    log = (folder / f"{strategy}-2" / "callbacks" / "log.csv").read_text().splitlines()
    epochs = [line.split(",")[0] for line in log]
    assert epochs == ["epoch", *map(str, range(len(epochs) - 1))]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[JobResult, Path]]:
    """A job of all checks."""

    @cache
    def run(strategy: str) -> tuple[JobResult, Path]:
        folder = tmp_path_factory.mktemp(strategy)
        return run_job(strategy, 2, [str(CHECKS_PROGRAM), str(folder)], timeout=200), folder

    return run


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("strategy", ENGINES)
def test_check(checked: Callable[[str], tuple[JobResult, Path]], strategy: str, check: str) -> None:
    job, folder = checked(strategy)
    for rank in range(2):
        path = folder / check / f"result-{rank}.json"
        assert path.exists(), job.describe()
        problem = json.loads(path.read_text())
        assert not problem, f"worker {rank}: {problem}"
