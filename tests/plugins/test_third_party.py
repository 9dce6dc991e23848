"""A strategy of somebody else, registered by entry point, tested by somebody else in three lines."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TOY = Path(__file__).with_name("toy_strategy.py").read_text()
THREE_LINES = """\
from farandole.plugins.pytest import Conformance
class TestToy(Conformance):
    strategy = "toy"
"""


ALL_WITH_TWO_WORKERS = "2- or test_job_ends_cleanly and 2"


def run_pytest(folder: Path, site: Path, chosen: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_toy.py").write_text(THREE_LINES)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "test_toy.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_toy_strategy_passes(make_distribution: Any, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, make_distribution("toy", TOY, {"toy": "ToyStrategy"}), ALL_WITH_TWO_WORKERS)
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


def test_broken_toy_strategy_fails(make_distribution: Any, tmp_path: Path) -> None:
    broken = TOY.replace("gradient / dist.get_world_size()", "gradient")
    assert broken != TOY
    done = run_pytest(tmp_path, make_distribution("toy", broken, {"toy": "ToyStrategy"}), "test_curve and 2-adamw")
    assert done.returncode == 1, done.stdout
    assert "test_curve[2-adamw-float64]" in done.stdout
