"""`parity` fails for each fault of a curve, and for nothing else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farandole.plugins.conformance.variants import VARIANTS

SOURCE = Path(__file__).with_name("mutant_strategies.py").read_text()
MUTANTS = {
    "wrong_weights": ("WrongWeights", {"accumulate_4", "schedule", "tokens"}),
    "wrong_clip": ("WrongClip", {"clip", "tokens"}),
    "wrong_shard": ("WrongShard", None),
    "nothing_wrong": ("NothingWrong", set()),
}


@pytest.mark.parametrize(
    ("mutants", "variants"),
    [
        (("wrong_clip",), ("clip", "schedule")),
        pytest.param(tuple(MUTANTS), tuple(VARIANTS), marks=pytest.mark.exhaustive),
    ],
    ids=["one", "all"],
)
def test_parity_finds_each_mutant_in_the_variants_that_it_breaks(
    make_distribution: Any, tmp_path: Path, mutants: tuple[str, ...], variants: tuple[str, ...]
) -> None:
    site = make_distribution("mutants", SOURCE, {name: target for name, (target, _) in MUTANTS.items()})
    report = tmp_path / "parity.json"
    command = ["experiment", "parity", "--strategies", ",".join(mutants), "--workers", "2", "--json", str(report)]
    command += ["--variants", ",".join(variants)]
    done = subprocess.run(
        [sys.executable, "-m", "farandole.cli.main", *command],
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    written = json.loads(report.read_text())
    assert not written["passed"]
    for name in mutants:
        _, broken = MUTANTS[name]
        rows = [row for row in written["rows"] if row["strategy"] == name]
        red = {row["variant"] for row in rows if row["dtype"] == "float32" and row["max_weight_diff"] > 1e-5}
        everything = {row["variant"] for row in rows}
        assert everything == set(variants), f"{name} did not run: {done.stdout + done.stderr}"
        assert red == (everything if broken is None else broken & everything), name
