"""Contract 6: what one engine saved with N workers, any other of its framework loads with M, on the same curve."""

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters.registry import strategy_row
from farandole.plugins.conformance.jobs import Outcome, run_conformance
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.conformance.variants import LOSS_BOUND, WEIGHT_BOUND
from farandole.plugins.conformance.worker import SAVED_DTYPE, SAVED_STEPS, SAVED_VARIANT

Placed = tuple[str, int]
Resume = Callable[[Placed], Outcome]

SAVED_WITH: dict[str, tuple[Placed, ...]] = {
    "torch": (("local", 1), ("ddp", 2), ("horovod", 3), ("fsdp", 2), ("deepspeed_zero_1", 2), ("deepspeed_zero_3", 3)),
    "tensorflow": (("tf_local", 1), ("tf_multiworker", 2), ("tf_horovod", 3)),
}
LOADED_WITH: dict[str, tuple[Placed, ...]] = {
    "torch": (("local", 1), ("ddp", 3), ("horovod", 2), ("fsdp", 3), ("deepspeed_zero_2", 3), ("deepspeed_zero_3", 2)),
    "tensorflow": (("tf_local", 1), ("tf_multiworker", 3), ("tf_horovod", 2)),
}


def pairs() -> Iterator[Any]:
    """By default each engine's checkpoint is loaded by two, and each engine loads two."""
    for framework, loaders in LOADED_WITH.items():
        for (saver, saved), (loader, loaded) in itertools.product(enumerate(SAVED_WITH[framework]), enumerate(loaders)):
            near = (loader - saver) % len(loaders) < 2
            name = "saved_by_{}_{}-loaded_by_{}_{}".format(*saved, *loaded)
            yield pytest.param(saved, loaded, id=name, marks=() if near else pytest.mark.exhaustive)


@pytest.fixture(scope="module")
def resume(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, worker_servers: WorkerServers
) -> Resume:
    """Return a function that once loads the checkpoints selected for a strategy, and trains each to its end."""
    folder = tmp_path_factory.mktemp("saved")
    asked = [item.callspec.params for item in request.session.items if item.parent is request.node]  # type: ignore[attr-defined]

    @cache
    def checkpoint(saved_with: Placed) -> Path:
        strategy, workers = saved_with
        path = folder / f"{strategy}-{workers}"
        job = folder / f"{strategy}-job"
        saved = run_conformance(strategy, workers, job, save=path, timeout=120, servers=worker_servers)
        assert saved.job.returncode == 0, saved.job.describe()
        return path

    @cache
    def run(loaded_with: Placed) -> Outcome:
        strategy, workers = loaded_with
        paths = [checkpoint(pair["saved_with"]) for pair in asked if pair["loaded_with"] == loaded_with]
        job = folder / f"{strategy}-resumed"
        return run_conformance(strategy, workers, job, resume=paths, timeout=180, servers=worker_servers)

    return run


@pytest.mark.parametrize(("saved_with", "loaded_with"), [*pairs()])
def test_the_curve_goes_on(resume: Resume, saved_with: Placed, loaded_with: Placed) -> None:
    from farandole.plugins.conformance.curves import read_curve
    from farandole.plugins.conformance.framework import reference_curve

    name = "{}-{}".format(*saved_with)
    curve = read_curve(resume(loaded_with).path(f"resumed-{name}.npz"))
    reference = reference_curve(strategy_row(loaded_with[0]).framework, SAVED_VARIANT, SAVED_DTYPE)
    assert reference.loss_diff(curve, start=SAVED_STEPS) <= LOSS_BOUND[SAVED_DTYPE]
    assert reference.weight_diff(curve) <= WEIGHT_BOUND[SAVED_DTYPE]
