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

from farandole.plugins.launch.job import JobResult, run_job

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
CASES = [(strategy, 2, name) for strategy, names in ON_TWO.items() for name in names]
CASES += [(strategy, 3, name) for strategy in ("horovod", "deepspeed_zero_3") for name in ON_THREE]
# What Lightning or DeepSpeed cannot do is refused, with what to do instead or in Lightning's own words.
REFUSED = {
    "two_optimizers": "strategy='horovod'",
    "unfrozen_by_hand": "strategy='horovod'",
    "averaged": "SWA does not currently support sharded models",
    "bare_optimizer": "step what self.optimizers() returns",
    "finetuned": "does not support running with the DeepSpeed strategy",
    "unfrozen": "use strategy='horovod' or 'ddp'",
    "scheduled_accumulation": "does not support `accumulate_grad_batches` changing",
}

Run = Callable[[str, int], JobResult]

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what stock Lightning finds in one process."""
    folder = tmp_path_factory.mktemp("trainer")
    stock = subprocess.run([sys.executable, PROGRAM, folder, "stock"], capture_output=True, text=True, timeout=200)
    assert stock.returncode == 0, stock.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Run:
    """A job of a strategy's scenarios. Three workers go on with checkpoints of another engine's two."""

    @cache
    def run(strategy: str, workers: int) -> JobResult:
        other = "stock"
        if workers == 3:
            before = "horovod" if strategy != "horovod" else "deepspeed_zero_3"
            run(before, 2)
            other = f"{before}-2"
        names = ON_TWO[strategy] if workers == 2 else ON_THREE
        return run_job(strategy, workers, [str(PROGRAM), str(folder), other, *names], timeout=200)

    return run


@pytest.mark.parametrize("strategy", ["horovod", "deepspeed_zero_3"])
def test_stock_lightning_takes_up_our_checkpoint(fitted: Run, folder: Path, strategy: str) -> None:
    """Weights, optimizer and counters; it begins the epoch's data anew, as it does after itself."""
    job = fitted(strategy, 2)
    checkpoint = folder / f"{strategy}-2" / "resumed" / "middle-step=7.ckpt"
    assert checkpoint.exists(), job.describe()
    lines = [
        "from scenarios import setting as s",
        "t = s.pl.Trainer(accelerator='cpu', devices=1, max_epochs=3, logger=False, enable_checkpointing=False)",
        "class N(s.Net):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.teacher = s.torch.nn.Linear(2, 2)",
        "    def configure_optimizers(self):",
        "        return s.torch.optim.AdamW(self.layers.parameters())",
        f"t.fit(N(), s.DataLoader(s.data(), 12), ckpt_path={str(checkpoint)!r})",
        "print('ended', t.global_step, t.optimizers[0].state_dict()['state'][0]['step'])",
    ]
    environ = {**os.environ, "PYTHONPATH": str(FOLDER)}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], env=environ, cwd=folder, capture_output=True, text=True, timeout=100
    )
    # Nine batches an epoch, without accumulation now: five of this epoch and nine of the last, after the seven.
    assert done.stdout.splitlines()[-1] == "ended 21 tensor(21.)", done.stderr


@pytest.mark.parametrize(("strategy", "workers", "name"), CASES)
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
