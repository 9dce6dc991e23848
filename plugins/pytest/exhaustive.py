"""A pytest plugin: two sizes of one suite. Tests marked `exhaustive` run only with `--exhaustive`.

    @pytest.mark.exhaustive
    def test_what_only_repeats_a_promise() -> None: ...

    @pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
    def test_a_promise(workers: int) -> None: ...

Load it with `-p farandole.plugins.pytest.exhaustive`.
"""

from __future__ import annotations

from typing import Any

import pytest

_LEFT_OUT = pytest.StashKey[int]()
_LEFT_OUT_KEY = "farandole_left_out"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    help = "run the whole product of strategies, variants and workers, not only what proves each promise once"
    parser.addoption("--exhaustive", action="store_true", help=help)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "exhaustive: repeats a promise in another combination; run with --exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect marked tests."""
    if config.getoption("exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.stash[_LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Under pytest-xdist, send the number to the process that writes the summary."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_LEFT_OUT_KEY] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Get the number from a process of pytest-xdist; each collects all tests."""
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get(_LEFT_OUT_KEY, 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Report how many were left out."""
    if number := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{number} tests that repeat a promise were left out; --exhaustive runs them too")
