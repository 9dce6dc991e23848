"""What `fsdp` promises beyond the contract: with three workers, and in half precision."""

from __future__ import annotations

import json
import runpy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from farandole.plugins.conformance.jobs import Outcome, run_conformance
from farandole.plugins.conformance.servers import WorkerServers

WORKERS = 3
PROGRAM = Path(__file__).with_name("fsdp_program.py")

# As in PyTorch before 2.13, whose FSDP cannot do either.
CHECKS = ["parameter_used_by_some_workers_gets_the_mean", "parameters_of_some_steps_are_updated_in_those"]
OLDER = f"""
import runpy
from farandole.plugins.conformance.torch.checks.steps import TORCH
from farandole.adapters.torch.engines.fsdp import older_torch
def main(strategy, folder):
    before = older_torch.REDUCES_UNUSED, older_torch.RESETS
    older_torch.REDUCES_UNUSED = older_torch.RESETS = False
    try:
        runpy.run_path({str(PROGRAM)!r})["main"](strategy, folder)
        for name in {CHECKS}:
            TORCH[name](strategy, folder)
    finally:
        older_torch.REDUCES_UNUSED, older_torch.RESETS = before
"""

BF16 = """
import torch
from torch.nn import functional
def main(strategy, folder):
    model = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.GELU(), torch.nn.Linear(16, 1))
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    def mse(model, batch):
        return functional.mse_loss(model(batch[0]), batch[1])
    training = strategy.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.03), mse)
    x = torch.linspace(-1, 1, 256).reshape(64, 4)
    batches = training.batches((x, x.sum(1, keepdim=True)), 16, epochs=20)
    losses = [float(training.step(batch)) for batch in batches]
    assert losses[-1] < losses[0] / 20, losses
    assert set(seen) == {torch.bfloat16} and model(x).dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert {gradient.dtype for gradient in training.engine.gradients()} == {torch.float32}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, worker_servers: WorkerServers) -> Callable[[], Outcome]:
    @cache
    def run() -> Outcome:
        folder = tmp_path_factory.mktemp("fsdp")
        return run_conformance(
            "fsdp", WORKERS, folder, options={"wrap": 1}, program=PROGRAM, timeout=180, servers=worker_servers
        )

    return run


@pytest.mark.parametrize("promise", runpy.run_path(str(PROGRAM))["PROMISES"])
def test_promise(run: Callable[[], Outcome], promise: str) -> None:
    outcome = run()
    for rank in range(WORKERS):
        broken = json.loads(outcome.path(f"{promise}-{rank}.json").read_text())
        assert broken is None, f"worker {rank}: {broken}"


def test_promises_with_an_older_pytorch(tmp_path: Path, worker_servers: WorkerServers) -> None:
    script = tmp_path / "older.py"
    script.write_text(OLDER)
    outcome = run_conformance(
        "fsdp",
        WORKERS,
        tmp_path,
        options={"wrap": 1},
        program=script,
        timeout=180,
        servers=worker_servers,
    )
    for promise in runpy.run_path(str(PROGRAM))["PROMISES"]:
        for rank in range(WORKERS):
            broken = json.loads(outcome.path(f"{promise}-{rank}.json").read_text())
            assert broken is None, f"worker {rank}: {promise}: {broken}"


def test_bf16_computes_in_half_and_keeps_float32(tmp_path: Path, worker_servers: WorkerServers) -> None:
    script = tmp_path / "train.py"
    script.write_text(BF16)
    options = {"wrap": 1, "precision": "bf16"}
    outcome = run_conformance("fsdp", 2, tmp_path, options=options, program=script, timeout=120, servers=worker_servers)
    assert outcome.job.returncode == 0, outcome.job.describe()
