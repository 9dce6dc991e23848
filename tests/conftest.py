"""Fixtures of several folders: invented distributions, free ports, the other selected tests."""

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from farandole.plugins.conformance.servers import WorkerServers
from farandole.plugins.pytest.suite import servers_of

# As in the workers: on few cores, threads that wait for each other at each operation cost more than they save.
os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"), "1"))

ROOT = Path(__file__).parents[1]

MakeDistribution = Callable[..., Path]

START_BY_HAND = """
import json, os, subprocess, sys
jobs = [subprocess.Popen(sys.argv[2:], env={**os.environ, **more}) for more in json.loads(sys.argv[1])]
sys.exit(max(job.wait() for job in jobs))
"""


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Run all modules that use the shared workers in one process, and the others in any."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.split("::")[0]
            return "workers that stay up" if _shares_workers(path) else path

    return ByModule(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say whether the tests that need a GPU ran, if all tests were asked for."""
    if not any((config.invocation_params.dir / argument).resolve() == ROOT / "tests" for argument in config.args):
        return
    reports = [report for found in terminalreporter.stats.values() for report in found]
    if not any(str(getattr(report, "nodeid", "")).startswith("tests/cuda/") for report in reports):
        terminalreporter.write_line("tests/cuda did not run; it needs a GPU: `farandole doctor` says what is here")


@cache
def _shares_workers(path: str) -> bool:
    source = (ROOT / path).read_text()
    return any(name in source for name in ("worker_servers", "in_workers_that_stay", "(Conformance)"))


@pytest.fixture
def make_distribution(tmp_path: Path) -> MakeDistribution:
    """Return a function that writes a distribution, and returns the folder to put on PYTHONPATH."""

    def make(name: str, source: str, entry_points: dict[str, str], group: str = "farandole.strategies") -> Path:
        folder = tmp_path / "site"
        metadata = folder / f"{name}-1.0.dist-info"
        metadata.mkdir(parents=True)
        (folder / f"{name}.py").write_text(source)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nSummary: of a test\n")
        rows = "".join(f"{entry_point} = {name}:{target}\n" for entry_point, target in entry_points.items())
        (metadata / "entry_points.txt").write_text(f"[{group}]\n{rows}")
        return folder

    return make


@pytest.fixture(scope="module")
def selected(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The parameters of this module's selected tests: a job needs no others."""
    items: Any = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return [item.callspec.params for item in items]


@pytest.fixture(scope="session")
def worker_servers(pytestconfig: pytest.Config) -> Iterator[WorkerServers]:
    """Yield the shared workers, which the classes of `Conformance` use too."""
    with servers_of(pytestconfig) as servers:
        yield servers


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Return a function that finds free ports."""

    def find(number: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(number)]
            return [listener.getsockname()[1] for listener in sockets]

    return find


@pytest.fixture(scope="session")
def by_hand() -> Callable[[Sequence[Mapping[str, str]], Sequence[str]], list[str]]:
    """Return a function that makes a command that starts a program once in each of some environments."""

    def command(environments: Sequence[Mapping[str, str]], program: Sequence[str]) -> list[str]:
        return [sys.executable, "-c", START_BY_HAND, json.dumps(environments), *program]

    return command
