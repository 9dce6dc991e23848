"""Contract 6: what one engine saved with N workers, any other takes up with M, and goes on with the same curve."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from farandole.plugins.conformance.jobs import Outcome, run_conformance
from farandole.plugins.conformance.variants import LOSS_BOUND, WEIGHT_BOUND
from farandole.plugins.conformance.worker import SAVED_DTYPE, SAVED_STEPS, SAVED_VARIANT

SAVED_WITH = (("local", 1), ("ddp", 2), ("horovod", 3), ("fsdp", 2), ("deepspeed_zero_1", 2), ("deepspeed_zero_3", 3))
LOADED_WITH = (("local", 1), ("ddp", 3), ("horovod", 2), ("fsdp", 3), ("deepspeed_zero_2", 3), ("deepspeed_zero_3", 2))

Resume = Callable[[str, int], Outcome]


@pytest.fixture(scope="module")
def resume(tmp_path_factory: pytest.TempPathFactory) -> Resume:
    """Return a function that loads every checkpoint with a strategy, and trains each to its end; once a strategy."""
    folder = tmp_path_factory.mktemp("saved")
    for strategy, workers in SAVED_WITH:
        saved = run_conformance(
            strategy, workers, folder / f"{strategy}-job", save=folder / f"{strategy}-{workers}", timeout=120
        )
        assert saved.job.returncode == 0, saved.job.describe()
    checkpoints = [folder / f"{strategy}-{workers}" for strategy, workers in SAVED_WITH]

    @cache
    def run(strategy: str, workers: int) -> Outcome:
        return run_conformance(strategy, workers, folder / f"{strategy}-resumed", resume=checkpoints, timeout=180)

    return run


@pytest.mark.parametrize("loaded_with", LOADED_WITH, ids=lambda pair: f"loaded_by_{pair[0]}_{pair[1]}")
@pytest.mark.parametrize("saved_with", SAVED_WITH, ids=lambda pair: f"saved_by_{pair[0]}_{pair[1]}")
def test_the_curve_goes_on(resume: Resume, saved_with: tuple[str, int], loaded_with: tuple[str, int]) -> None:
    from farandole.plugins.conformance.curves import read_curve
    from farandole.plugins.conformance.reference import reference_curve

    name = "{}-{}".format(*saved_with)
    curve = read_curve(Path(resume(*loaded_with).path(f"resumed-{name}.npz")))
    reference = reference_curve(SAVED_VARIANT, SAVED_DTYPE)
    assert reference.loss_diff(curve, start=SAVED_STEPS) <= LOSS_BOUND[SAVED_DTYPE]
    assert reference.weight_diff(curve) <= WEIGHT_BOUND[SAVED_DTYPE]
