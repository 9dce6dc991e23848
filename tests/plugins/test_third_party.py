"""A third party's strategy, registered by entry point, and tested in three lines."""

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


BROKEN = TOY.replace("gradient / dist.get_world_size()", "gradient").replace("Toy", "Broken")
THREE_MORE = THREE_LINES.replace("TestToy", "TestBroken").replace('"toy"', '"broken"')
CHOSEN = "TestToy and (2- or test_job_ends_cleanly and 2) or TestBroken and test_curve and 2-adamw"


def test_a_toy_strategy_passes_and_a_broken_one_fails(make_distribution: Any, tmp_path: Path) -> None:
    assert BROKEN.count("gradient / ") == TOY.count("gradient / ") - 1
    site = make_distribution("toy", TOY, {"toy": "ToyStrategy", "broken": "BrokenStrategy"})
    with (site / "toy.py").open("a") as source:
        source.write(BROKEN.replace("from __future__ import annotations", ""))
    (tmp_path / "test_toy.py").write_text(THREE_LINES)
    (tmp_path / "test_broken.py").write_text(THREE_MORE)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", CHOSEN, "test_toy.py", "test_broken.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1, done.stdout
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 1 and "TestBroken::test_curve[2-adamw-float64]" in failed[0], done.stdout
