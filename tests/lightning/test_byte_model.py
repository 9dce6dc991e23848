"""The larger example of a Trainer, in shared workers."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from farandole.plugins.conformance.servers import WorkerServers

BYTES = Path(__file__).parents[2] / "experiments/examples/bytes_lightning.py"


def test_the_byte_model_as_on_one_device_with_stock_lightning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], worker_servers: WorkerServers
) -> None:
    size = ["--layers", "2", "--width", "64", "--sequence-length", "64", "--max-steps", "10"]
    stock = ["--strategy", "auto", "--devices", "1", "--batch-size", "16"]
    monkeypatch.setattr(sys, "argv", [str(BYTES), *size, *stock])
    runpy.run_path(str(BYTES), run_name="__main__")
    expected = final_loss(capsys.readouterr().out)
    ours = ["--strategy", "horovod", "--devices", "2", "--batch-size", "8"]
    job = worker_servers.run_program("horovod", 2, [str(BYTES), *size, *ours], timeout=100)
    assert job.returncode == 0, job.describe()
    assert final_loss(job.output) == pytest.approx(expected, abs=1e-5), job.describe()
    assert re.search(r"horovod: [4-7]\.\d\d\d bits per byte after 10 steps", job.output), job.describe()


def final_loss(output: str) -> float:
    (printed,) = re.findall(r"final loss: (\d+\.\d{9})", output)
    return float(printed)
