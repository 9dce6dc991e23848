"""`ddp` with gradients outside of its buckets: any parameter may be unused in any micro-batch, on any worker."""

from __future__ import annotations

from pathlib import Path

from farandole.plugins.conformance.jobs import run_conformance
from farandole.plugins.conformance.servers import WorkerServers

CHECK = "micro_batches_may_use_different_parameters"


def test_gradients_outside_of_buckets(tmp_path: Path, worker_servers: WorkerServers) -> None:
    options = {"gradient_as_bucket_view": False}
    run_conformance("ddp", 2, tmp_path, options=options, checks=[CHECK], timeout=120, servers=worker_servers).check(
        CHECK
    )
