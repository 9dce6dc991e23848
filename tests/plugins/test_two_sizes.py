"""The two sizes of the suite: what is marked `exhaustive` is run with the option only, and all else in both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLUGIN = "farandole.plugins.pytest.exhaustive"
SUITE = """
import pytest
@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.exhaustive)])
def test_promise(workers):
    pass
@pytest.mark.exhaustive
class TestProduct:
    def test_again(self):
        pass
"""


def collect(*arguments: str, cwd: Path) -> tuple[set[str], str]:
    """Return the node ids that pytest would run, and its output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", *arguments]
    done = subprocess.run(command, cwd=cwd, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {line for line in done.stdout.splitlines() if "::" in line}, done.stdout


def test_what_is_marked_is_run_with_the_option_only(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SUITE)
    default, said = collect("-p", PLUGIN, cwd=tmp_path)
    assert default == {"test_it.py::test_promise[2]"}
    assert "2 tests that repeat a promise were left out; --exhaustive runs them too" in said
    whole, said = collect("-p", PLUGIN, "--exhaustive", cwd=tmp_path)
    assert whole == {*default, "test_it.py::test_promise[3]", "test_it.py::TestProduct::test_again"}
    assert "left out" not in said


def test_the_default_size_is_a_part_of_the_whole_suite(request: pytest.FixtureRequest) -> None:
    default = {item.nodeid for item in request.session.items}
    whole, _ = collect("--exhaustive", "tests", cwd=ROOT)
    assert default <= whole, f"--exhaustive does not run: {sorted(default - whole)}"
