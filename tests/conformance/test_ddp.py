"""What `ddp` promises beyond the contract: any parameter may be unused in any micro-batch, on any worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from farandole.plugins.conformance.jobs import run_conformance
from farandole.plugins.conformance.servers import WorkerServers

PROGRAM = Path(__file__).with_name("ddp_program.py")


@pytest.mark.parametrize("view", [True, False])
def test_micro_batches_may_use_different_parameters(view: bool, tmp_path: Path, worker_servers: WorkerServers) -> None:
    options = {"gradient_as_bucket_view": view}
    outcome = run_conformance("ddp", 2, tmp_path, options=options, program=PROGRAM, timeout=120, servers=worker_servers)
    assert outcome.job.returncode == 0, outcome.job.describe()
