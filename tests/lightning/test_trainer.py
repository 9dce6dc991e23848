"""Ordinary Lightning programs on several workers against stock Lightning in one process."""

from __future__ import annotations

import json
import os
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
PROGRAM = FOLDER / "trainer_program.py"
SCENARIOS = [
    name
    for path in sorted((FOLDER / "scenarios").glob("*.py"))
    for name in re.findall(r"@scenario\ndef (\w+)", path.read_text())
]
BOUND = 1e-5
# Shares that differ more and are empty more often, and checkpoints of two workers.
ON_THREE = ("few_held_out", "own_samplers", "resumed", "resumed_in_larger_batches", "predicted")
ON_TWO = {
    "horovod": SCENARIOS,
    "deepspeed_zero_1": ("logged", "manual", "resumed", "fitted_again"),
    "deepspeed_zero_2": ("logged", "manual", "resumed", "fitted_again"),
    "deepspeed_zero_3": [name for name in SCENARIOS if name != "one_after_another"],  # DeepSpeed keeps what it trained
}
# The strategies of a job, one after the other in it, and the job whose checkpoints it loads.
JOBS = {
    ("horovod", 2): (["horovod"], "stock"),
    ("deepspeed", 2): (["deepspeed_zero_3", "deepspeed_zero_2", "deepspeed_zero_1"], "stock"),
    ("horovod", 3): (["horovod"], "deepspeed_zero_3-2"),
    ("deepspeed", 3): (["deepspeed_zero_3"], "horovod-2"),
}
CASES = [(strategy, 2, name) for strategy, names in ON_TWO.items() for name in names]
CASES += [(strategy, 3, name) for strategy in ("horovod", "deepspeed_zero_3") for name in ON_THREE]
# What Lightning or DeepSpeed cannot do is refused, with what to do instead or in Lightning's own words.
REFUSED = {
    "two_optimizers": "strategy='horovod'",
    "unfrozen_by_hand": "strategy='horovod'",
    "optimizer_used_again": "make a new one for each fit()",
    "averaged": "SWA does not currently support sharded models",
    "bare_optimizer": "step what self.optimizers() returns",
    "finetuned": "does not support running with the DeepSpeed strategy",
    "unfrozen": "use strategy='horovod' or 'ddp'",
    "scheduled_accumulation": "does not support `accumulate_grad_batches` changing",
}

Run = Callable[[str, int], JobResult]

pytestmark = pytest.mark.timeout(400)


STRATEGIES = ("horovod", "deepspeed_zero_3")


@pytest.fixture(scope="module")
def asked(selected: list[dict[str, Any]]) -> list[tuple[str, int, str]]:
    """The selected cases, and those whose checkpoints others load."""
    found = {(each["strategy"], each["workers"], each["name"]) for each in selected}
    return [case for case in CASES if case in found | {(strategy, 2, "resumed") for strategy in STRATEGIES}]


@pytest.fixture(scope="module")
def folder(asked: list[tuple[str, int, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with stock Lightning's results in one process."""
    folder = tmp_path_factory.mktemp("trainer")
    names = [f"auto:{name}" for name in SCENARIOS if any(name == case[2] for case in asked)]
    stock = subprocess.run([sys.executable, PROGRAM, folder, "stock", *names], capture_output=True, text=True)
    assert stock.returncode == 0, stock.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path, asked: list[tuple[str, int, str]], worker_servers: WorkerServers) -> Run:
    """A job of an engine's strategies and their scenarios. Three workers load another engine's checkpoints."""

    @cache
    def run(engine: str, workers: int) -> JobResult:
        strategies, other = JOBS[engine, workers]
        if workers == 3:
            run("deepspeed" if engine == "horovod" else "horovod", 2)
        names = [f"{of}:{name}" for own in strategies for of, on, name in asked if (of, on) == (own, workers)]
        program = [str(PROGRAM), str(folder), other, *names]
        return worker_servers.run_program(strategies[0], workers, program, timeout=300)

    return lambda strategy, workers: run(strategy.split("_")[0], workers)


GOING_ON = """
import sys
from scenarios import setting as s

class N(s.Net):
    def __init__(self):
        super().__init__()
        self.teacher = s.torch.nn.Linear(2, 2)
    def configure_optimizers(self):
        return s.torch.optim.AdamW(self.layers.parameters())

for checkpoint in sys.argv[1:]:
    t = s.pl.Trainer(accelerator="cpu", devices=1, max_epochs=3, logger=False, enable_checkpointing=False)
    t.fit(N(), s.DataLoader(s.data(), 12), ckpt_path=checkpoint)
    print("ended", t.global_step, t.optimizers[0].state_dict()["state"][0]["step"])
"""


def test_stock_lightning_takes_up_our_checkpoints(fitted: Run, folder: Path) -> None:
    """Weights, optimizer and counters; the epoch's data begin again, as with its own checkpoints."""
    jobs = [fitted(strategy, 2) for strategy in STRATEGIES]
    checkpoints = [folder / f"{strategy}-2" / "resumed" / "middle-step=7.ckpt" for strategy in STRATEGIES]
    for job, checkpoint in zip(jobs, checkpoints, strict=True):
        assert checkpoint.exists(), job.describe()
    done = subprocess.run(
        [sys.executable, "-c", GOING_ON, *checkpoints],
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    # Nine batches an epoch, without accumulation now: five of this epoch and nine of the last, after the seven.
    ended = [line for line in done.stdout.splitlines() if line.startswith("ended")]
    assert ended == ["ended 21 tensor(21.)"] * 2, done.stderr


# Horovod on three workers is for the exhaustive size: the curves of tests/conformance have its weights, too.
EXHAUSTIVE = {("horovod", 3)}


@pytest.mark.parametrize(
    ("strategy", "workers", "name"),
    [pytest.param(*case, marks=[pytest.mark.exhaustive] if case[:2] in EXHAUSTIVE else []) for case in CASES],
)
def test_training_is_that_of_one_process(fitted: Run, folder: Path, strategy: str, workers: int, name: str) -> None:
    job = fitted(strategy, workers)
    assert job.returncode == 0, job.describe()
    assert not job.survivors, job.describe()
    for rank in range(workers):
        path = folder / f"{strategy}-{workers}" / name / f"result-{rank}.json"
        assert path.exists(), job.describe()
        result: Any = json.loads(path.read_text())
        if strategy.startswith("deepspeed") and name in REFUSED:
            assert REFUSED[name] in result
        else:
            assert isinstance(result, dict), f"worker {rank}: {result}\n{job.output[-4000:]}"
            assert all(isinstance(difference, float) and difference <= BOUND for difference in result.values()), result
