"""The same curve through Lightning: its Trainer on our strategies, and on one device with N times the batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest

from farandole.plugins.conformance.curves import read_curve
from farandole.plugins.conformance.jobs import Outcome
from farandole.plugins.conformance.lightning.jobs import run_curves
from farandole.plugins.conformance.lightning.reference import reference_curve
from farandole.plugins.conformance.lightning.training import mean_losses
from farandole.plugins.conformance.lightning.variants import STRATEGIES, VARIANTS, batch_size
from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.conformance.variants import GLOBAL_BATCH, LOSS_BOUND, WEIGHT_BOUND
from farandole.plugins.lightning.package import trainer_part
from farandole.plugins.lightning.strategy import AdapterStrategy

UNEVEN = ("combined", "empty_share")
SOME = (*UNEVEN, "schedule", "unused_parameter")  # what the others do is in these too; `parity` runs all of them


# Each strategy trains with two workers or with three, and ZeRO's stage 3 with both.
WITH_THREE = ("deepspeed_zero_2", "deepspeed_zero_2_offload")


def asked(strategy: str, workers: int) -> list[tuple[str, str]]:
    if strategy == "horovod" and workers == 2:
        return [*((variant, "float32") for variant in VARIANTS), *((variant, "float64") for variant in UNEVEN)]
    return [(variant, "float32") for variant in (SOME if workers == 2 and "offload" not in strategy else UNEVEN)]


# The strategies of a job, which come one after the other in it.
JOBS = (("horovod",), tuple(name for name in STRATEGIES if name != "horovod"))


def places() -> Iterator[Any]:
    for strategy, workers in itertools.product(STRATEGIES, (2, 3)):
        once = strategy == "deepspeed_zero_3" or (workers == 3) == (strategy in WITH_THREE)
        marks = () if once else pytest.mark.exhaustive
        yield pytest.param(strategy, workers, id=f"{strategy}-{workers}", marks=marks)


@pytest.fixture(scope="module")
def trained(
    selected: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, worker_servers: WorkerServers
) -> Callable[[str, int], Outcome]:
    """The outcome of the job in which a strategy trains all selected curves with this number of workers."""
    chosen = {(each["strategy"], each["workers"]) for each in selected if "strategy" in each}

    @cache
    def run(names: tuple[str, ...], workers: int) -> Outcome:
        here = [name for name in names if (name, workers) in chosen]
        curves = [(name, variant, dtype) for name in here for variant, dtype in asked(name, workers)]
        return run_curves(workers, tmp_path_factory.mktemp(f"{names[0]}-{workers}"), curves, worker_servers)

    return lambda strategy, workers: run(next(names for names in JOBS if strategy in names), workers)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("strategy", "workers"), [*places()])
def test_trainer_follows_its_own_curve_on_one_device(
    trained: Callable[[str, int], Outcome], strategy: str, workers: int
) -> None:
    outcome = trained(strategy, workers)
    for variant, dtype in asked(strategy, workers):
        path = outcome.path(f"curve-{strategy}-{variant}-{dtype}.npz")
        assert path.exists(), outcome.job.describe()
        curve = read_curve(path)
        reference = reference_curve(variant, dtype, workers)
        assert reference.loss_diff(curve) <= LOSS_BOUND[dtype], (variant, dtype)
        assert reference.weight_diff(curve) <= WEIGHT_BOUND[dtype], (variant, dtype)
    assert outcome.job.returncode == 0, outcome.job.describe()
    assert outcome.job.survivors == ()


def test_every_strategy_of_ours_that_lightning_knows_is_held_to_it():
    registry = trainer_part("strategies").StrategyRegistry
    ours = [name for name in registry.available_strategies() if issubclass(registry[name]["strategy"], AdapterStrategy)]
    assert sorted(ours) == sorted(STRATEGIES)


@pytest.mark.parametrize("workers", [2, 3])
def test_lengths_leave_uneven_and_empty_shares(workers: int):
    left = {name: VARIANTS[name].length % (workers * batch_size(VARIANTS[name], workers)) for name in UNEVEN}
    assert left["empty_share"] == 1
    assert left["combined"] % workers != 0
    for variant in VARIANTS.values():
        assert GLOBAL_BATCH / 2 < workers * variant.accumulate * batch_size(variant, workers) <= GLOBAL_BATCH


def test_reference_steps_on_what_an_epoch_has_left():
    variant, workers = VARIANTS["combined"], 2
    curve = reference_curve("combined", "float64", workers)
    batches = -(-variant.length // (workers * batch_size(variant, workers)))
    steps = -(-batches // variant.accumulate)
    assert len(curve.losses) == 100 // steps * batches
    assert curve.losses[0] > 2 * curve.losses[-1]


def test_a_sample_that_stands_in_counts_once():
    assert mean_losses([[([3, 4], 1.0), ([7], 5.0)], [([5], 4.0), ([7, 7], 5.0)]]) == (2.0, 5.0)
