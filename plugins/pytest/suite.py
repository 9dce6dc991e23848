"""The conformance suite as a class of tests to inherit from."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ...adapters.registry import strategy_row
from ..conformance.curves import read_curve
from ..conformance.faults import BROKE, HOW, MESSAGE, WHERE
from ..conformance.framework import checks_of, reference_curve
from ..conformance.jobs import Outcome, run_conformance, run_fault
from ..conformance.servers import WorkerServers
from ..conformance.variants import DTYPES, LOSS_BOUND, VARIANTS, WEIGHT_BOUND
from . import exhaustive
from .sizes import OF_THE_STEP, asks_check, asks_curve

FAULT_SECONDS = 15
"""Seconds that a job may take to end after one of its workers failed."""

Run = Callable[[int], Outcome]


_PARAMETERS = ("world_size", "variant", "dtype", "check", "where", "how")

_SERVERS = pytest.StashKey[WorkerServers]()


class Conformance:
    """Every promise of the contract, tested in real processes under the strategy's own launcher.

    All tests except those of faults share running workers, also between classes of the same launcher.

    By default each promise is tested once; `pytest -p farandole.plugins.pytest.exhaustive --exhaustive` tests the
    product of variants, types, checks, faults and numbers of workers.

    strategy: a registered name.
    framework: needed only for a strategy of an entry point whose framework is not "torch".
    options: engine options to create it with.
    workers: the numbers of workers to test; only 1 for an engine of one process.
    dtypes: the types to compare curves in.
    faults: where and how to make a worker fail by default, one job for each; may be empty. See `conformance.faults`.
    excluded: checks that these options legally do not pass, each with the reason.
    varies: whether another class tests the same engine with other options; then the default size repeats only curves
        and checks that options may change.
    """

    strategy: ClassVar[str]
    framework: ClassVar[str | None] = None
    options: ClassVar[Mapping[str, Any]] = {}
    workers: ClassVar[tuple[int, ...]] = (1, 2, 3)
    dtypes: ClassVar[tuple[str, ...]] = DTYPES
    faults: ClassVar[tuple[tuple[str, str], ...]] = (("forward", "raise"), ("save", "kill"))
    excluded: ClassVar[Mapping[str, str]] = {}
    varies: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not cls.faults:
            # None removes an inherited test; no parameters would be a skip.
            cls.test_fault_is_loud_and_bounded = None  # type: ignore[assignment, method-assign]

    @classmethod
    def framework_name(cls) -> str:
        """Return the framework of the reference and the checks."""
        return cls.framework or strategy_row(cls.strategy).framework

    @classmethod
    def check_names(cls) -> tuple[str, ...]:
        """Return the names of the checks to run, in order."""
        return tuple(name for name in checks_of(cls.framework_name()) if name not in cls.excluded)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Parametrize as the class says."""
        names = [name for name in _PARAMETERS if name in metafunc.fixturenames]
        if not names:
            return
        chosen = []
        for values in self._combinations(names):
            if self._by_default(dict(zip(names, values, strict=True))):
                chosen.append(pytest.param(*values))
            elif metafunc.config.pluginmanager.has_plugin(exhaustive.__name__):
                chosen.append(pytest.param(*values, marks=pytest.mark.exhaustive))
        metafunc.parametrize(names, chosen)

    def _combinations(self, names: Sequence[str]) -> Iterable[tuple[Any, ...]]:
        choices: dict[str, Sequence[Any]] = {
            "world_size": self.workers,
            "variant": tuple(VARIANTS),
            "dtype": self.dtypes,
            "check": self.check_names() if "check" in names else (),
            "where": WHERE,
            "how": HOW,
        }
        return itertools.product(*(choices[name] for name in names))

    def _by_default(self, values: Mapping[str, Any]) -> bool:
        if "where" in values:
            return (values["where"], values["how"]) in self.faults
        if "variant" in values:
            return asks_curve(self.workers, self.dtypes, **values, varies=self.varies)
        if "check" in values:
            return asks_check(self.workers, **values) and (not self.varies or values["check"] in OF_THE_STEP)
        return True

    @pytest.fixture(scope="session")
    @classmethod
    def worker_servers(cls, pytestconfig: pytest.Config) -> Iterator[WorkerServers]:
        """Yield the running workers, for all classes of the session."""
        with servers_of(pytestconfig) as servers:
            yield servers

    @pytest.fixture(scope="class")
    @classmethod
    def run(
        cls,
        request: pytest.FixtureRequest,
        tmp_path_factory: pytest.TempPathFactory,
        worker_servers: WorkerServers,
    ) -> Run:
        """Return a function that runs the work of the chosen tests once per number of workers."""
        asked = [item.callspec.params for item in _items_of(request.session, cls)]

        @cache
        def run(world_size: int) -> Outcome:
            here = [params for params in asked if params.get("world_size") == world_size]
            checks = {params["check"] for params in here if "check" in params} | {"samples_do_not_depend_on_the_worker"}
            return run_conformance(
                cls.strategy,
                world_size,
                tmp_path_factory.mktemp(f"{cls.strategy}-{world_size}"),
                options=cls.options,
                curves=[(params["variant"], params["dtype"]) for params in here if "variant" in params],
                checks=[name for name in cls.check_names() if name in checks],
                servers=worker_servers,
            )

        return run

    def test_curve(self, run: Run, world_size: int, variant: str, dtype: str) -> None:
        """Contract 1 and 2: losses, gradient norms and weights of 100 steps equal plain code's in one process."""
        reference = reference_curve(self.framework_name(), variant, dtype)
        curve = read_curve(run(world_size).path(f"curve-{variant}-{dtype}.npz"))
        assert reference.loss_diff(curve) <= LOSS_BOUND[dtype]
        assert reference.grad_norm_diff(curve) <= LOSS_BOUND[dtype]
        assert reference.weight_diff(curve) <= WEIGHT_BOUND[dtype]

    def test_check(self, run: Run, world_size: int, check: str) -> None:
        """Contract 1 to 6 and 8: one promise, kept by all workers."""
        run(world_size).check(check)

    def test_samples_are_the_same_at_any_world_size(self, run: Run) -> None:
        """Contract 2 and 3: a sample's random numbers depend on (seed, epoch, sample) only."""
        drawn = [run(world_size).check("samples_do_not_depend_on_the_worker") for world_size in self.workers]
        assert all(other == drawn[0] for other in drawn)

    def test_job_ends_cleanly(self, run: Run, world_size: int) -> None:
        """Workers leave the strategy after their work; `worker_servers` asserts that their job ends cleanly."""
        job = run(world_size).job
        assert job.returncode == 0 and not job.survivors, job.describe()

    def test_fault_is_loud_and_bounded(self, where: str, how: str, tmp_path: Path) -> None:
        """Contract 7: one failed worker ends the job soon, with its traceback, and leaves no process."""
        job = run_fault(
            self.strategy, min(2, max(self.workers)), where, how, tmp_path, self.options, self.framework_name()
        )
        ended = time.time()
        assert job.returncode != 0 and not job.timed_out and not job.survivors, job.describe()
        assert (tmp_path / BROKE).exists(), f"no worker failed: {job.describe()}"
        assert ended - (tmp_path / BROKE).stat().st_mtime < FAULT_SECONDS, job.describe()
        if how == "raise":
            assert "Traceback" in job.output and MESSAGE in job.output, job.describe()
        assert (tmp_path / "before" / "manifest.json").exists(), "the checkpoint before the fault is missing"


@contextlib.contextmanager
def servers_of(config: pytest.Config) -> Iterator[WorkerServers]:
    """Yield the session's running workers; the first user to leave ends them, and raises if one did not end cleanly."""
    servers = config.stash.setdefault(_SERVERS, WorkerServers())
    yield servers
    servers.close()


def _items_of(session: pytest.Session, cls: type) -> list[Any]:
    return [item for item in session.items if getattr(item, "cls", None) is cls and hasattr(item, "callspec")]
