"""Checkpoints are converted to plain DeepSpeed and back; the curve continues each time."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from farandole.cli.main import main
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.launch.command import launch_command
from farandole.plugins.launch.job import JobResult, run_marked

pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

HERE = Path(__file__).parent
STEPS = 6
BOUND = 1e-5


def train(servers: WorkerServers, strategy: str, *words: object) -> list[float]:
    """Train on two running workers, and return the losses that they wrote."""
    program = [str(HERE / "training_beside_plain.py"), strategy, *map(str, words)]
    return losses(servers.run_program(strategy, 2, program, timeout=120), words)


def train_plainly(workers: int, *words: object) -> list[float]:
    """Train by plain DeepSpeed in a new job, because it leaves traces."""
    command = launch_command("ddp", workers, [str(HERE / "plain_deepspeed.py"), *map(str, words)])
    return losses(run_marked(command.argv, env=command.env, timeout=120), words)


def losses(job: JobResult, words: Sequence[object]) -> list[float]:
    assert job.returncode == 0 and not job.survivors, job.describe()
    found: list[float] = json.loads(Path(str(words[-1])).read_text())
    return found


def convert(*words: object) -> None:
    result = CliRunner().invoke(main, ["checkpoint", "convert", *map(str, words)])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, worker_servers: WorkerServers) -> tuple[Path, list[float]]:
    """A checkpoint that `deepspeed_zero_3` left on two workers, and the losses of all steps before and after."""
    folder = tmp_path_factory.mktemp("saved")
    words = ("", folder / "checkpoint", folder / "losses.json")
    return folder / "checkpoint", train(worker_servers, "deepspeed_zero_3", *words)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("stage", "workers"), [(1, 3), pytest.param(2, 2, marks=pytest.mark.exhaustive), (3, 2)])
def test_plain_deepspeed_goes_on_and_so_does_ddp(
    saved: tuple[Path, list[float]], worker_servers: WorkerServers, tmp_path: Path, stage: int, workers: int
) -> None:
    checkpoint, reference = saved
    theirs = tmp_path / "theirs"
    convert(checkpoint, theirs, "--to", "deepspeed", "--stage", stage, "--workers", workers)
    words = (stage, theirs, tmp_path / "plain", tmp_path / "losses.json")
    plain = train_plainly(workers, *words)
    assert plain == pytest.approx(reference[STEPS:], abs=BOUND)

    back = ("--to", "farandole", "--trust", "--scheduler", "CosineAnnealingLR", "--progress", 3, 0)
    convert(tmp_path / "plain", tmp_path / "back", *back)
    resumed = train(worker_servers, "ddp", tmp_path / "back", "", tmp_path / "resumed.json")
    assert resumed == pytest.approx(plain[STEPS:], abs=BOUND)
    assert max(map(abs, plain)) > 100 * BOUND, "the bound says nothing of losses as small as that"
