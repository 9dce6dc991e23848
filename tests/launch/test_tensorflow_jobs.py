"""TensorFlow's strategies under other launchers, and the messages if TF_CONFIG is set by hand."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.launch.start import find_launcher
from farandole.plugins.launch.job import run_marked
from farandole.plugins.launch.ports import hold_ports, port_of

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("tensorflow_program.py")
FIT = ROOT / "experiments/examples/digits_keras_fit.py"
LEAVE = ROOT / "tests/plugins/keras_leave_program.py"
BOUND = 15.0  # seconds from a fault until every worker has ended

pytestmark = pytest.mark.timeout(150)
exhaustive = pytest.mark.exhaustive


class Worker:
    """A process with its own TF_CONFIG, and its output."""

    def __init__(self, path: Path, config: Any, *arguments: str, **environ: str) -> None:
        self._path, self.config = path, config
        self._file = path.open("w")
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TF_CPP_MIN_LOG_LEVEL": "1",
                "FARANDOLE_STRATEGY": "tf_multiworker",
                "TF_CONFIG": config if isinstance(config, str) else json.dumps(config),
                **environ,
            },
        )

    @property
    def output(self) -> str:
        return self._path.read_text()

    def ends_within(self, seconds: float) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGCONT)
            raise AssertionError(f"still running after {seconds} s:\n{self.output[-4000:]}") from None

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._file.close()


def configs(count: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        held = [stack.enter_context(each) for each in hold_ports(count)]
        cluster = {"worker": [f"127.0.0.1:{port_of(each)}" for each in held]}
    return [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(count)]


@contextmanager
def workers(folder: Path, given: Sequence[Any], *arguments: str, **environ: str) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        started = [Worker(folder / f"{rank}.log", config, *arguments, **environ) for rank, config in enumerate(given)]
        for worker in started:
            stack.callback(worker.close)
        yield started


def losses(output: str) -> list[str]:
    return re.findall(r"LOSSES ([\d. ]+\d)", output)


@pytest.fixture(scope="module")
def alone() -> str:
    """The losses of one process."""
    found = run_marked([sys.executable, str(PROGRAM), "none"], timeout=60, env={"FARANDOLE_STRATEGY": "tf_local"})
    (line,) = losses(found.output)
    return line


def same(output: str, alone: str, count: int) -> None:
    found = losses(output)
    assert len(found) == count, output
    for line in found:
        assert list(map(float, line.split())) == pytest.approx(list(map(float, alone.split())), abs=2e-6)


@pytest.mark.parametrize(
    ("strategy", "launcher"),
    [
        ("tf_multiworker", ["horovodrun", "-np", "2", "--gloo", sys.executable]),
        pytest.param("tf_multiworker", ["torchrun", "--standalone", "--nproc-per-node", "2"], marks=exhaustive),
        ("tf_horovod", ["torchrun", "--standalone", "--nproc-per-node", "2"]),
    ],
)
def test_other_launchers(strategy: str, launcher: list[str], alone: str) -> None:
    path = find_launcher(launcher[0])
    assert path is not None
    job = run_marked([path, *launcher[1:], str(PROGRAM), "none"], timeout=100, env={"FARANDOLE_STRATEGY": strategy})
    assert job.returncode == 0, job.describe()
    assert not job.survivors, job.describe()
    same(job.output, alone, 2)


def test_horovod_under_tf_config(tmp_path: Path, alone: str) -> None:
    with workers(tmp_path, configs(2), str(PROGRAM), "none", FARANDOLE_STRATEGY="tf_horovod") as started:
        assert [worker.ends_within(90) for worker in started] == [0, 0], started[0].output
        same("".join(worker.output for worker in started), alone, 2)


@pytest.mark.parametrize(
    ("fault", "where"),
    [
        ("kill", "barrier"),
        pytest.param("terminate", "step", marks=exhaustive),  # by default in `fit`
        pytest.param("terminate", "barrier", marks=exhaustive),
        pytest.param("kill", "step", marks=exhaustive),
        pytest.param("stop", "step", marks=exhaustive),
        pytest.param("stop", "barrier", marks=exhaustive),
    ],
)
def test_a_worker_that_is_gone_ends_the_others(tmp_path: Path, fault: str, where: str) -> None:
    with workers(tmp_path, configs(2), str(PROGRAM), fault, where) as (first, last):
        until = time.monotonic() + 80
        while "READY" not in last.output and time.monotonic() < until:
            time.sleep(0.1)
        gone = time.monotonic()
        assert first.ends_within(BOUND) != 0
        assert time.monotonic() - gone < BOUND
        assert "Traceback" in first.output
        assert ("lost another worker" if where == "step" else "worker 1 of 2 was killed, or stopped") in first.output


def test_a_worker_that_is_asked_to_end_in_fit(tmp_path: Path) -> None:
    """Both finish the save that they have begun."""
    with workers(tmp_path, configs(2), str(LEAVE), str(tmp_path), "term:1") as (first, last):
        assert last.ends_within(80) == 128 + signal.SIGTERM, last.output
        assert first.ends_within(BOUND) not in (0, None)
        assert "WorkerLostError: worker 0 of 2 lost another worker" in first.output
        assert (tmp_path / "term-1/saved/manifest.json").exists(), first.output + last.output


@exhaustive
def test_a_worker_that_is_slow_goes_on(tmp_path: Path) -> None:
    """As on a busy machine."""
    with workers(tmp_path, configs(2), str(PROGRAM), "stop", "step") as (first, last):
        until = time.monotonic() + 80
        while "READY" not in last.output and time.monotonic() < until:
            time.sleep(0.1)
        time.sleep(9)
        last.process.send_signal(signal.SIGCONT)
        assert [worker.ends_within(30) for worker in (first, last)] == [0, 0], first.output + last.output


# The roll call's messages are tested with threads; here, that the strategy holds one, and for how long.


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """Workers 0 of 2 whose worker 1 never comes; two of them could not train with it either. They start together."""
    folder = tmp_path_factory.mktemp("troubled")
    given = {
        "deadline": (["none"], {"FARANDOLE_START_DEADLINE": "3"}),
        "operation": (["operation"], {"FARANDOLE_START_DEADLINE": "8"}),
        "framework": (["none"], {"KERAS_BACKEND": "torch"}),
    }
    with ExitStack() as stack:
        started = {
            name: Worker(folder / f"{name}.log", configs(2)[0], str(PROGRAM), *arguments, **environ)
            for name, (arguments, environ) in given.items()
        }
        for worker in started.values():
            stack.callback(worker.close)
        yield started


def test_a_worker_that_never_comes_is_named(troubled: dict[str, Worker]) -> None:
    worker = troubled["deadline"]
    assert worker.ends_within(80) != 0
    missing = worker.config["cluster"]["worker"][1]
    assert f"worker 1 ({missing}) did not join within 3 s" in worker.output


def test_an_operation_before_the_strategy(troubled: dict[str, Worker]) -> None:
    worker = troubled["operation"]
    assert worker.ends_within(80) != 0
    assert "a TensorFlow operation ran before" in worker.output


def test_keras_on_another_framework(troubled: dict[str, Worker]) -> None:
    worker = troubled["framework"]
    assert worker.ends_within(80) != 0
    assert "KERAS_BACKEND=tensorflow" in worker.output


@exhaustive
def test_workers_that_were_told_of_different_clusters(tmp_path: Path) -> None:
    first, other = configs(2)[0], configs(3)[1]
    other["cluster"]["worker"][0] = first["cluster"]["worker"][0]
    with workers(tmp_path, [first, other], str(PROGRAM), "none") as started:
        for worker in started:
            assert worker.ends_within(80) != 0
            assert "give all workers the same one" in worker.output


@exhaustive
@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("{cluster", "TF_CONFIG is not JSON"),
        ({"cluster": {"worker": ["127.0.0.1:1"]}, "task": {"type": "worker", "index": 1}}, "has only: worker 0"),
    ],
)
def test_bad_tf_config(tmp_path: Path, config: Any, said: str) -> None:
    with workers(tmp_path, [config], str(PROGRAM), "none") as (worker,):
        assert worker.ends_within(80) != 0
        assert said in worker.output


# The example for `fit`: in one process, and as its head says to start it, which the README's shorter one is by default.


def test_fit_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # metrics go there
    job = run_marked([sys.executable, str(FIT), "--strategy", "tf_local", "--epochs", "5"], timeout=120)
    assert job.returncode == 0, job.describe()
    assert len(re.findall(r"tf_local: (9[5-9]|100)\.\d% of 297", job.output)) == 1, job.describe()


@exhaustive
def test_fit_under_farandole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # metrics go there
    argv = [sys.executable, "-m", "farandole.cli.main", "run", "--strategy", "tf_multiworker", "-n", "2"]
    job = run_marked([*argv, str(FIT), "--epochs", "5"], timeout=120)
    assert job.returncode == 0, job.describe()
    assert len(re.findall(r"tf_multiworker: (9[5-9]|100)\.\d% of 297", job.output)) == 1, job.describe()
    assert job.output.count("Epoch 5/5") == 1, "one worker shows the progress"


@exhaustive
def test_fit_under_horovodrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # metrics go there
    path = find_launcher("horovodrun")
    assert path is not None
    argv = [path, "-np", "2", "--gloo", sys.executable, str(FIT), "--strategy", "tf_horovod", "--epochs", "5"]
    job = run_marked(argv, timeout=120)
    assert job.returncode == 0, job.describe()
    assert len(re.findall(r"tf_horovod: (9[5-9]|100)\.\d% of 297", job.output)) == 1, job.describe()


@exhaustive
def test_fit_under_tf_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # metrics go there
    with workers(tmp_path, configs(2), str(FIT), "--strategy", "tf_multiworker", "--epochs", "5") as started:
        assert [worker.ends_within(120) for worker in started] == [0, 0], started[0].output
        assert re.search(r"tf_multiworker: (9[5-9]|100)\.\d% of 297", started[0].output)
