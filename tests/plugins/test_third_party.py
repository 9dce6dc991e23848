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


def run_pytest(folder: Path, site: Path) -> subprocess.CompletedProcess[str]:
    (folder / "test_toy.py").write_text(THREE_LINES)
    # The whole suite at three numbers of workers takes minutes; two workers and one fault show that it runs and judges.
    chosen = "not fault and not [1- and not [3- and not [1] and not [3] and not any_world_size or raise and forward"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, "test_toy.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_toy_strategy_passes(make_distribution: Any, tmp_path: Path) -> None:
    done = run_pytest(tmp_path, make_distribution("toy", TOY, {"toy": "ToyStrategy"}))
    assert done.returncode == 0, done.stdout
    assert "failed" not in done.stdout


def test_broken_toy_strategy_fails(make_distribution: Any, tmp_path: Path) -> None:
    broken = TOY.replace("gradient / dist.get_world_size()", "gradient")
    assert broken != TOY
    done = run_pytest(tmp_path, make_distribution("toy", broken, {"toy": "ToyStrategy"}))
    assert done.returncode == 1, done.stdout
    assert "test_curve[2-sgd_momentum-float32]" in done.stdout
