"""A pytest plugin: two sizes of one suite. What is marked `exhaustive` is left out unless `--exhaustive` is given.

    @pytest.mark.exhaustive
    def test_what_only_repeats_a_promise() -> None: ...

    @pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
    def test_a_promise(workers: int) -> None: ...

Load it with `-p farandole.plugins.pytest.exhaustive`.
"""

from __future__ import annotations

import pytest

_LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    help = "run the whole product of strategies, variants and workers, not only what proves each promise once"
    parser.addoption("--exhaustive", action="store_true", help=help)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", "exhaustive: repeats a promise in another combination; run with --exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave marked tests out."""
    if config.getoption("exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    if left_out:
        config.stash[_LEFT_OUT] = len(left_out)
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many were left out."""
    if number := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.write_line(f"{number} tests were left out that repeat a promise; --exhaustive runs them too")
