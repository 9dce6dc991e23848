"""Models of Hugging Face, built from their configs, train on each engine of PyTorch as on `local`.

`tox -e models` runs them, in an environment of their own: Lightning imports `transformers` where it is installed, which
takes each process a second. Each launcher's workers start once, and train one model after the other.
"""

from __future__ import annotations

import importlib.util
import json
import runpy
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farandole.plugins.conformance.curves import Curve, read_curve
from farandole.plugins.conformance.jobs import Outcome, run_conformance
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.conformance.variants import LOSS_BOUND, WEIGHT_BOUND

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs transformers: tox -e models"),
]

WORKERS = 2
PROGRAM = Path(__file__).with_name("hugging_face_program.py")
CASES = tuple(runpy.run_path(str(PROGRAM))["CASES"])
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "fsdp-blocks": ("fsdp", {"wrap": 1}),
    "horovod": ("horovod", {}),
    "deepspeed_zero_1": ("deepspeed_zero_1", {}),
    "deepspeed_zero_2": ("deepspeed_zero_2", {}),
    "deepspeed_zero_3": ("deepspeed_zero_3", {}),
}
REFUSED_IN_SCOPE = ("bert", "resnet")
"""Models that set weights of their submodules in ways that ZeRO-3, which has partitioned them, cannot follow."""

Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory, worker_servers: WorkerServers) -> Train:
    @cache
    def train(case: str, strategy: str, workers: int, accumulate: int = 1, wrap: int | None = None) -> Outcome:
        folder = tmp_path_factory.mktemp(f"{case}-{strategy}")
        (folder / "asked.json").write_text(json.dumps({"case": case, "accumulate": accumulate}))
        options = {} if wrap is None else {"wrap": wrap}
        return run_conformance(
            strategy, workers, folder, options=options, program=PROGRAM, timeout=180, servers=worker_servers
        )

    return train


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_trains_as_on_local(train: Train, case: str, engine: str) -> None:
    # BatchNorm normalizes over a micro-batch: as many of them on one worker are the same curve.
    accumulate = WORKERS if case.endswith("batch_norm") else 1
    strategy, options = ENGINES[engine]
    expected, found = curve_of(train(case, "local", 1, accumulate)), curve_of(train(case, strategy, WORKERS, **options))
    assert expected.loss_diff(found) <= LOSS_BOUND["float32"]
    assert expected.weight_diff(found) <= WEIGHT_BOUND["float32"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_only_zero_3_refuses_to_build_in_scope(train: Train, case: str, engine: str) -> None:
    strategy, options = ENGINES[engine]
    outcome = train(case, strategy, WORKERS, **options)
    said = [(outcome.folder / f"refused-{rank}.txt") for rank in range(WORKERS)]
    refused = strategy == "deepspeed_zero_3" and case.startswith(REFUSED_IN_SCOPE)
    assert [path.exists() for path in said] == [refused] * WORKERS
    assert all("build the model before scope()" in path.read_text() for path in said if refused)


def curve_of(outcome: Outcome) -> Curve:
    """Return a job's curve, without what is legally another one's.

    Attention does not depend on the biases of its keys: their gradient is rounding, of which Adam makes whole steps.
    Running statistics are a worker's own.
    """
    curve = read_curve(outcome.path("curve.npz"))
    left_out = ("key.bias", "k_proj.bias", "running_mean", "running_var", "num_batches_tracked")
    weights = {name: weight for name, weight in curve.weights.items() if not name.endswith(left_out)}
    for name in weights:
        if name.endswith("c_attn.bias"):
            queries, _, values = np.split(weights[name], 3)
            weights[name] = np.concatenate([queries, values])
    return replace(curve, weights=weights)
