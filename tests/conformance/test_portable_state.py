"""Contract 6: what one engine saved with N workers, any other of its framework takes up with M, on the same curve."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from farandole.adapters.registry import strategy_row
from farandole.plugins.conformance.jobs import Outcome, run_conformance
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
PAIRS = [
    pytest.param(saved, loaded, id="saved_by_{}_{}-loaded_by_{}_{}".format(*saved, *loaded))
    for framework in SAVED_WITH
    for loaded in LOADED_WITH[framework]
    for saved in SAVED_WITH[framework]
]


@pytest.fixture(scope="module")
def resume(tmp_path_factory: pytest.TempPathFactory) -> Resume:
    """Return a function that loads a framework's checkpoints with a strategy, and trains each to its end; once each."""
    folder = tmp_path_factory.mktemp("saved")

    @cache
    def checkpoints(framework: str) -> list[Path]:
        paths = []
        for strategy, workers in SAVED_WITH[framework]:
            path = folder / f"{strategy}-{workers}"
            saved = run_conformance(strategy, workers, folder / f"{strategy}-job", save=path, timeout=120)
            assert saved.job.returncode == 0, saved.job.describe()
            paths.append(path)
        return paths

    @cache
    def run(loaded_with: Placed) -> Outcome:
        strategy, workers = loaded_with
        saved = checkpoints(strategy_row(strategy).framework)
        return run_conformance(strategy, workers, folder / f"{strategy}-resumed", resume=saved, timeout=180)

    return run


@pytest.mark.parametrize(("saved_with", "loaded_with"), PAIRS)
def test_the_curve_goes_on(resume: Resume, saved_with: Placed, loaded_with: Placed) -> None:
    from farandole.plugins.conformance.curves import read_curve
    from farandole.plugins.conformance.framework import reference_curve

    name = "{}-{}".format(*saved_with)
    curve = read_curve(resume(loaded_with).path(f"resumed-{name}.npz"))
    reference = reference_curve(strategy_row(loaded_with[0]).framework, SAVED_VARIANT, SAVED_DTYPE)
    assert reference.loss_diff(curve, start=SAVED_STEPS) <= LOSS_BOUND[SAVED_DTYPE]
    assert reference.weight_diff(curve) <= WEIGHT_BOUND[SAVED_DTYPE]
