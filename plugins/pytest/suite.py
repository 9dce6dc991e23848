"""The conformance suite as a class of tests to inherit from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ...adapters.registry import strategy_row
from ..conformance.curves import read_curve
from ..conformance.faults import HOW, MESSAGE, WHERE
from ..conformance.framework import checks_of, reference_curve
from ..conformance.jobs import Outcome, run_conformance, run_fault
from ..conformance.variants import DTYPES, LOSS_BOUND, VARIANTS, WEIGHT_BOUND

FAULT_SECONDS = 15
"""How long a job may live after one of its workers broke; its start is granted on top."""

START_SECONDS = 12

Run = Callable[[int], Outcome]


class Conformance:
    """Every promise of the contract, tested in real processes under the strategy's own launcher.

    One job for each number of workers serves all tests but those that break a worker.

    strategy: a registered name.
    framework: whose models it trains; only to be given for a strategy of an entry point, for which it is "torch" else.
    options: engine options to create it with.
    workers: the numbers of workers to test at; only 1 for an engine that knows no other.
    dtypes: the types to compare curves in.
    faults: whether to break workers too, a job for each way.
    excluded: checks that these options legally do not pass, each with the reason.
    """

    strategy: ClassVar[str]
    framework: ClassVar[str | None] = None
    options: ClassVar[Mapping[str, Any]] = {}
    workers: ClassVar[tuple[int, ...]] = (1, 2, 3)
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    faults: ClassVar[bool] = True
    excluded: ClassVar[Mapping[str, str]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.faults:
            # None is how pytest is told that an inherited test is not there; no parameters would be a skip.
            cls.test_fault_is_loud_and_bounded = None  # type: ignore[assignment, method-assign]

    @classmethod
    def framework_name(cls) -> str:
        """Return whose reference and checks these are."""
        return cls.framework or strategy_row(cls.strategy).framework

    @classmethod
    def check_names(cls) -> tuple[str, ...]:
        """Return the names of the checks to run, in order."""
        return tuple(name for name in checks_of(cls.framework_name()) if name not in cls.excluded)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize over what the class says."""
        values: dict[str, tuple[Any, ...]] = {
            "world_size": self.workers,
            "variant": tuple(VARIANTS),
            "dtype": self.dtypes,
            "check": self.check_names() if "check" in metafunc.fixturenames else (),
            "where": WHERE,
            "how": HOW,
        }
        for name, choices in values.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, choices, scope="class")

    @pytest.fixture(scope="class")
    @classmethod
    def run(cls, tmp_path_factory: pytest.TempPathFactory) -> Run:
        """Return the outcome of the class's job with a number of workers, which runs once."""

        @cache
        def run(world_size: int) -> Outcome:
            return run_conformance(
                cls.strategy,
                world_size,
                tmp_path_factory.mktemp(f"{cls.strategy}-{world_size}"),
                options=cls.options,
                curves=[(variant, dtype) for variant in VARIANTS for dtype in cls.dtypes],
                checks=cls.check_names(),
            )

        return run

    def test_curve(self, run: Run, world_size: int, variant: str, dtype: str) -> None:
        """Contract 1 and 2: losses and weights of 100 steps equal plain code's in one process."""
        reference = reference_curve(self.framework_name(), variant, dtype)
        curve = read_curve(run(world_size).path(f"curve-{variant}-{dtype}.npz"))
        assert reference.loss_diff(curve) <= LOSS_BOUND[dtype]
        assert reference.weight_diff(curve) <= WEIGHT_BOUND[dtype]

    def test_check(self, run: Run, world_size: int, check: str) -> None:
        """Contract 1 to 6 and 8: one promise, kept by all workers."""
        run(world_size).check(check)

    def test_samples_are_the_same_at_any_world_size(self, run: Run) -> None:
        """Contract 2 and 3: what a sample draws at random depends on (seed, epoch, sample) only."""
        drawn = [run(world_size).check("samples_know_no_worker") for world_size in self.workers]
        assert all(other == drawn[0] for other in drawn)

    def test_job_ends_cleanly(self, run: Run, world_size: int) -> None:
        """A job that did its work exits with 0 and leaves no process."""
        job = run(world_size).job
        assert job.returncode == 0 and not job.survivors, job.describe()

    def test_fault_is_loud_and_bounded(self, where: str, how: str, tmp_path: Path) -> None:
        """Contract 7: one broken worker ends the job soon, with its traceback, and leaves no process."""
        job = run_fault(
            self.strategy, min(2, max(self.workers)), where, how, tmp_path, self.options, self.framework_name()
        )
        assert job.returncode != 0 and not job.timed_out and not job.survivors, job.describe()
        assert "nothing broke" not in job.output, job.describe()
        assert job.seconds < START_SECONDS + FAULT_SECONDS, job.describe()
        if how == "raise":
            assert "Traceback" in job.output and MESSAGE in job.output, job.describe()
        assert (tmp_path / "before" / "manifest.json").exists(), "the checkpoint before the fault is gone"
