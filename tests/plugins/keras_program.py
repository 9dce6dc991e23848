"""Runs scenarios of `keras_scenarios`: in one process of stock Keras, or as a worker of a strategy; there checks too.

python keras_program.py FOLDER NAME ...

The stock process writes what it found; workers compare with that, and write the differences of each scenario, and the
traceback of a check that fails.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
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
    from keras_checks import CHECKS

    from farandole.adapters import create_strategy

    with create_strategy() as strategy:
        worker = strategy.worker
        for name in names:
            place = folder / f"{strategy_name}-{worker.world_size}" / name
            place.mkdir(parents=True, exist_ok=True)
            try:
                if name in CHECKS:
                    result: Any = CHECKS[name](strategy, place) or ""
                else:
                    result = _compare(name, strategy, place, folder / "stock" / name)
            except Exception:
                result = traceback.format_exc()
            (place / f"result-{worker.rank}.json").write_text(json.dumps(result))
            if "Traceback" in result:
                raise SystemExit(result)  # the workers would not meet in the next one


def _compare(name: str, strategy: Any, place: Path, stock: Path) -> dict[str, float] | str:
    """Return the differences between a scenario's results here and in the stock process, or why it is refused."""
    from farandole.adapters import OptionError
    from farandole.plugins.keras import distribute

    def own(make: Any) -> Any:
        with strategy.scope():
            model = make()
        model.scope_of_test = strategy.scope
        return distribute(model, strategy)

    try:
        found = SCENARIOS[name](own, place)
    except OptionError as error:
        return str(error)
    with np.load(stock / "numbers.npz") as expected:
        result = {key: _difference(expected[key], found[key]) for key in expected.files}
    same = strategy.gather(b"".join(np.asarray(found[key]).tobytes() for key in sorted(found)))
    return {**result, "workers differ": float(len(set(same)) - 1)}


def _difference(expected: Any, found: Any) -> float:
    expected, found = np.asarray(expected, "float64"), np.asarray(found, "float64")
    if expected.shape != found.shape:
        return float("inf")
    return float(np.max(np.abs(found - expected) / np.maximum(1.0, np.abs(expected)), initial=0.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:], os.environ.get("FARANDOLE_STRATEGY"))
