"""Runs scenarios of `scenarios`: in one process of stock Lightning, or as a worker of strategies, one after the other.

python trainer_program.py FOLDER OTHER STRATEGY:SCENARIO ...

The stock process, whose strategy is `auto`, writes what it found; workers compare with that, and write the relative
difference of each number. OTHER names the folder of another job, with whose checkpoints these workers go on.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scenarios import SCENARIOS, Setting

from farandole.adapters import detect_launch
from farandole.plugins.launch.job import watch_stacks


def main(folder: Path, other: str, names: list[str]) -> None:
    watch_stacks()
    torch.set_num_threads(1)
    worker = detect_launch().worker
    for strategy, name in (each.split(":") for each in names):
        stock = folder / "stock" / name
        place = stock if strategy == "auto" else folder / f"{strategy}-{worker.world_size}" / name
        place.mkdir(parents=True, exist_ok=True)
        setting = Setting(strategy, worker.world_size, place, stock, folder / other / name)
        if setting.is_stock:
            np.savez(place / "numbers.npz", **SCENARIOS[name](setting))
            continue
        import farandole.plugins.lightning  # noqa: F401

        try:
            found = SCENARIOS[name](setting)
            with np.load(stock / "numbers.npz") as expected:
                result: Any = {key: _difference(expected[key], found[key]) for key in expected.files if key in found}
                if worker.is_main:
                    result |= {key: "missing" for key in expected.files if key not in found}
        except Exception as error:
            result = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        (place / f"result-{worker.rank}.json").write_text(json.dumps(result))


def _difference(expected: Any, found: Any) -> float:
    expected, found = np.asarray(expected, "float64"), np.asarray(found, "float64")
    if expected.shape != found.shape:
        return float("inf")
    return float(np.linalg.norm(found - expected) / max(1.0, np.linalg.norm(expected)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
