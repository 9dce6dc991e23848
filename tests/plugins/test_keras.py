"""`fit` on several workers against stock Keras in one process, and a distributed model's other promises."""

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

from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.launch.job import JobResult

FOLDER = Path(__file__).parent
PROGRAM = FOLDER / "keras_program.py"
SCENARIOS = re.findall(r"@scenario\ndef (\w+)", (FOLDER / "keras_scenarios.py").read_text())
CHECKS = re.findall(r"@check\ndef (\w+)", (FOLDER / "keras_checks.py").read_text())
ON_THREE = ("arrays", "empty_shares", "shuffled_dataset")  # shares that differ more, and are empty more often
BOUND = 1e-5
# What TensorFlow cannot do inside of its strategy is refused there, with the way out.
REFUSED = {("tf_multiworker", "steps_per_execution"), ("tf_multiworker", "gradient_accumulation_steps")}
ENGINES = ("tf_multiworker", "tf_horovod")
CASES = [(strategy, 2, name) for strategy in ENGINES for name in SCENARIOS]
CASES += [(strategy, 3, name) for strategy in ENGINES for name in ON_THREE]
CHECKED = [(strategy, 2, name) for strategy in ENGINES for name in CHECKS]
# By default each runs on one engine at least, and on both if their code differs.
ON_BOTH = {"arrays", "clipnorm", "own_train_step", "empty_shares", "steps_per_execution", "gradient_accumulation_steps"}
ON_HOROVOD = {"class_weight", "validation_split", "compiled_again"}
CHECKED_ON_BOTH = {
    "checkpointed_layers_fit_as_without",
    "data_that_workers_do_not_share_are_refused",
    "shuffles_without_a_seed_are_the_same_everywhere",
    "a_metric_read_by_one_worker_alone_is_global",
    "data_that_end_too_soon_are_an_error",
    "workers_start_from_rank_0",
}
CHECKED_ON_HOROVOD = {
    "callbacks_that_horovods_users_know",
    "callbacks_of_farandoles_see_each_step",
    "a_run_that_was_cut_off_goes_on",
}

Run = Callable[[str, int], JobResult]
exhaustive = pytest.mark.exhaustive

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def asked(selected: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """The strategies, numbers of workers, and names of scenarios or checks that are selected."""
    found = {
        (each["strategy"], each.get("workers", 2), each.get("scenario") or each.get("check", "callbacks"))
        for each in selected
    }
    return [case for case in CASES + CHECKED if case in found]


@pytest.fixture(scope="module")
def folder(asked: list[tuple[str, int, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stock Keras's results in one process."""
    folder = tmp_path_factory.mktemp("keras")
    names = [name for name in SCENARIOS if any(name == case[2] for case in asked)]
    stock = subprocess.run([sys.executable, PROGRAM, folder, *names], capture_output=True, text=True, timeout=200)
    assert stock.returncode == 0, stock.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def job(folder: Path, asked: list[tuple[str, int, str]], worker_servers: WorkerServers) -> Run:
    """A job of all scenarios and checks of a strategy, at some number of workers."""

    @cache
    def run(strategy: str, workers: int) -> JobResult:
        names = [name for of, on, name in asked if (of, on) == (strategy, workers)]
        return worker_servers.run_program(strategy, workers, [str(PROGRAM), str(folder), *names], timeout=300)

    return run


def sized(cases: list[tuple[str, int, str]], both: set[str], on_horovod: set[str]) -> list[Any]:
    """Return parameters; those that repeat another's are for the exhaustive size."""
    marks = {
        ("tf_multiworker", 2): lambda name: name in on_horovod,
        ("tf_horovod", 2): lambda name: name not in on_horovod | both,
        ("tf_multiworker", 3): lambda name: name != "empty_shares",
        ("tf_horovod", 3): lambda name: True,  # the README's example is run so
    }
    return [
        pytest.param(*case, marks=[exhaustive] if marks[case[:2]](case[2]) else [], id="-".join(map(str, case)))
        for case in cases
    ]


def results(job: JobResult, folder: Path, workers: int) -> list[Any]:
    """Return what each worker wrote."""
    paths = [folder / f"result-{rank}.json" for rank in range(workers)]
    assert all(path.exists() for path in paths), job.describe()
    return [json.loads(path.read_text()) for path in paths]


@pytest.mark.parametrize(("strategy", "workers", "scenario"), sized(CASES, ON_BOTH, ON_HOROVOD))
def test_fit_is_that_of_one_process(job: Run, folder: Path, strategy: str, workers: int, scenario: str) -> None:
    for result in results(job(strategy, workers), folder / f"{strategy}-{workers}" / scenario, workers):
        if (strategy, scenario) in REFUSED:
            assert scenario in result
            assert "tf_horovod" in result
        else:
            assert isinstance(result, dict), result
            assert max(result.values()) <= BOUND, result


@pytest.mark.parametrize(("strategy", "workers", "check"), sized(CHECKED, CHECKED_ON_BOTH, CHECKED_ON_HOROVOD))
def test_check(job: Run, folder: Path, strategy: str, workers: int, check: str) -> None:
    for problem in results(job(strategy, workers), folder / f"{strategy}-{workers}" / check, workers):
        assert not problem


@pytest.mark.parametrize("strategy", ["tf_multiworker", pytest.param("tf_horovod", marks=exhaustive)])
def test_files_are_written_by_one_worker(job: Run, folder: Path, strategy: str) -> None:
    done = job(strategy, 2)
    assert done.returncode == 0, done.describe()
    assert not done.survivors, done.describe()
    log = (folder / f"{strategy}-2" / "callbacks" / "log.csv").read_text().splitlines()
    epochs = [line.split(",")[0] for line in log]
    assert epochs == ["epoch", *map(str, range(len(epochs) - 1))]
