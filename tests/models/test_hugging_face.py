"""Models of Hugging Face, built from their configs, train on each engine of PyTorch as on `local`.

`tox -e models` runs them, in an environment of their own: Lightning imports `transformers` where it is installed, which
takes each process a second.
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
ENGINES: dict[str, tuple[str, dict[str, Any]]] = {
    "ddp": ("ddp", {}),
    "fsdp": ("fsdp", {}),
    "fsdp-blocks": ("fsdp", {"wrap": 1}),
    "horovod": ("horovod", {}),
    "deepspeed_zero_1": ("deepspeed_zero_1", {}),
    "deepspeed_zero_2": ("deepspeed_zero_2", {}),
    "deepspeed_zero_3": ("deepspeed_zero_3", {}),
}
REFUSED_IN_SCOPE = ("bert", "resnet-batch_norm")
"""Cases whose weights are set by what ZeRO-3 has partitioned by then."""

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
@pytest.mark.parametrize("case", runpy.run_path(str(PROGRAM))["CASES"])
def test_trains_as_on_local(train: Train, case: str, engine: str) -> None:
    # BatchNorm normalizes over a micro-batch: as many of them on one worker are the same curve.
    accumulate = WORKERS if case.endswith("batch_norm") else 1
    strategy, options = ENGINES[engine]
    expected, found = curve_of(train(case, "local", 1, accumulate)), curve_of(train(case, strategy, WORKERS, **options))
    assert expected.loss_diff(found) <= LOSS_BOUND["float32"]
    assert expected.weight_diff(found) <= WEIGHT_BOUND["float32"]


def curve_of(outcome: Outcome) -> Curve:
    """Return a job's curve, without what is legally another one's.

    Attention does not depend on the biases of its keys: their gradient is rounding, of which Adam makes whole steps.
    Running statistics are a worker's own.
    """
    curve = read_curve(outcome.path("curve.npz"))
    left_out = ("key.bias", "k_proj.bias", "c_attn.bias", "running_mean", "running_var", "num_batches_tracked")
    return replace(curve, weights={name: w for name, w in curve.weights.items() if not name.endswith(left_out)})


@pytest.mark.parametrize("case", REFUSED_IN_SCOPE)
def test_zero_3_says_where_to_build_what_it_cannot_follow(train: Train, case: str) -> None:
    for rank in range(WORKERS):
        said = train(case, "deepspeed_zero_3", WORKERS).path(f"refused-{rank}.txt").read_text()
        assert "build the model before scope()" in said
