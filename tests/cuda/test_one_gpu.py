"""What is promised of GPUs only: who has which, what fits into one, and float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from farandole.plugins.conformance.curves import read_curve
from farandole.plugins.conformance.framework import reference_curve
from farandole.plugins.conformance.jobs import run_conformance
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.conformance.variants import LOSS_BOUND, WEIGHT_BOUND
from farandole.plugins.conformance.worker import SAVED_DTYPE, SAVED_STEPS, SAVED_VARIANT
from farandole.plugins.launch.installed import package

ON_NCCL = {"device": "cuda"}
SHARED = {"device": "cuda:0", "backend": "gloo"}

# The blocks' shards, and one block at a time, are on the GPU: not all blocks.
FITS = """
import torch
from torch import nn
def main(strategy, folder):
    model = nn.Sequential(*(nn.Linear(1024, 2048, bias=False) if n % 2 else nn.Linear(2048, 1024, bias=False)
                            for n in range(32)))
    whole = sum(parameter.nbytes for parameter in model.parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 0.75 * whole, f"{peak} bytes on the GPU for a model of {whole}"
    assert float(training.step(next(training.batches(torch.ones(8, 2048), 8)))) > 0
"""

# The losses' scale is too large at first: those updates are skipped.
FLOAT16 = """
import torch
from torch import nn
from farandole.adapters.checkpoint.manifest import LossScale
def main(strategy, folder):
    def build():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.9)
        return strategy.prepare(model, optimizer, lambda m, x: m(x).float().square().mean(), scheduler)
    data = torch.linspace(-1, 1, 512).reshape(64, 8).cos()
    training = build()
    training.engine.load_loss_scale(LossScale(2.0**24, 0, hysteresis=1))
    updates, losses = 0, []
    for batch in training.batches(data, 4, epochs=2):
        losses.append(float(training.step(batch)))
        updates += not training.engine.skipped
        assert abs(training.optimizer.param_groups[0]["lr"] - 0.01 * 0.9**updates) < 1e-9
    assert 0 < updates < 32, updates
    assert min(losses[-4:]) < losses[0], losses
    scale = training.engine.loss_scale()
    assert scale.scale < 2.0**24
    training.save(folder / "float16", training.progress)
    again = build()
    assert again.engine.loss_scale() != scale
    again.load(folder / "float16")
    assert again.engine.loss_scale() == scale
"""


def run(program: str, folder: Path, strategy: str, workers: int, options: Any, servers: WorkerServers) -> None:
    script = folder / "program.py"
    script.write_text(program)
    outcome = run_conformance(strategy, workers, folder, options=options, program=script, timeout=90, servers=servers)
    assert outcome.job.returncode == 0, outcome.job.describe()


def test_fsdp_never_has_the_whole_model_on_one_gpu(tmp_path: Path, worker_servers: WorkerServers) -> None:
    run(FITS, tmp_path, "fsdp", 2, {**SHARED, "wrap": 1}, worker_servers)


@pytest.mark.parametrize(
    "strategy",
    [
        "fsdp",
        pytest.param(
            "deepspeed_zero_2",
            marks=pytest.mark.skipif(package("deepspeed") is None, reason="DeepSpeed is not installed"),
        ),
    ],
)
def test_float16_keeps_its_loss_scale_and_skips_updates(
    strategy: str, tmp_path: Path, worker_servers: WorkerServers
) -> None:
    run(FLOAT16, tmp_path, strategy, 1, {**ON_NCCL, "precision": "fp16"}, worker_servers)


def test_two_workers_on_nccl_cannot_share_a_gpu(tmp_path: Path) -> None:
    outcome = run_conformance("ddp", 2, tmp_path, options={"device": "cuda:0"}, checks=["barrier_blocks"], timeout=90)
    assert outcome.job.returncode != 0 and not outcome.job.timed_out, outcome.job.describe()
    assert "workers 0 and 1 share one GPU" in outcome.job.output, outcome.job.describe()


@pytest.mark.parametrize(("on_gpu", "workers", "options"), [("fsdp", 2, {**SHARED, "wrap": 1}), ("local", 1, ON_NCCL)])
def test_checkpoints_move_between_gpu_and_cpu(
    on_gpu: str, workers: int, options: Any, tmp_path: Path, worker_servers: WorkerServers
) -> None:
    reference = reference_curve("torch", SAVED_VARIANT, SAVED_DTYPE)
    gpu: tuple[str, int, Any] = (on_gpu, workers, options)
    cpu: tuple[str, int, Any] = ("ddp", 2, {"device": "cpu"})
    for number, (saver, loader) in enumerate(((gpu, cpu), (cpu, gpu))):
        path = tmp_path / f"saved{number}"
        for work in ({"save": path}, {"resume": [path]}):
            name, size, chosen = saver if "save" in work else loader
            folder = tmp_path / f"{number}-{next(iter(work))}"
            outcome = run_conformance(name, size, folder, options=chosen, timeout=90, servers=worker_servers, **work)
            assert outcome.job.returncode == 0, outcome.job.describe()
        curve = read_curve(outcome.path(f"resumed-{path.name}.npz"))
        assert reference.loss_diff(curve, start=SAVED_STEPS) <= LOSS_BOUND[SAVED_DTYPE]
        assert reference.weight_diff(curve) <= WEIGHT_BOUND[SAVED_DTYPE]
