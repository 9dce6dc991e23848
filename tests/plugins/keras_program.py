"""Runs scenarios of `keras_scenarios`: in one process of stock Keras, or as a worker of a strategy.

python keras_program.py FOLDER [SCENARIO ...]

The stock process writes what it found; workers compare with that, and write the largest difference of each scenario.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from keras_scenarios import SCENARIOS

from farandole.plugins.launch.job import watch_stacks


def main(folder: Path, names: list[str], strategy_name: str | None) -> None:
    watch_stacks()
    if strategy_name is None:
        for name in names:
            place = folder / "stock" / name
            place.mkdir(parents=True)
            np.savez(place / "numbers.npz", **SCENARIOS[name](lambda make: make(), place))
        return
    from farandole.adapters import OptionError, create_strategy
    from farandole.plugins.keras import distribute

    with create_strategy() as strategy:

        def own(make: Any) -> Any:
            with strategy.scope():
                model = make()
            model.scope_of_test = strategy.scope
            return distribute(model, strategy)

        worker = strategy.worker
        for name in names:
            place = folder / f"{strategy_name}-{worker.world_size}" / name
            place.mkdir(parents=True, exist_ok=True)
            try:
                found = SCENARIOS[name](own, place)
                with np.load(folder / "stock" / name / "numbers.npz") as expected:
                    result: Any = {key: _difference(expected[key], found[key]) for key in expected.files}
                same = strategy.gather(b"".join(np.asarray(found[key]).tobytes() for key in sorted(found)))
                result["workers differ"] = float(len(set(same)) - 1)
            except OptionError as error:
                result = str(error)
            (place / f"result-{worker.rank}.json").write_text(json.dumps(result))


def _difference(expected: Any, found: Any) -> float:
    expected, found = np.asarray(expected, "float64"), np.asarray(found, "float64")
    if expected.shape != found.shape:
        return float("inf")
    return float(np.max(np.abs(found - expected) / np.maximum(1.0, np.abs(expected)), initial=0.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(SCENARIOS), os.environ.get("FARANDOLE_STRATEGY"))
