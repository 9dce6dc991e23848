"""One worker of a job that fails: `python -m ...conformance.tensorflow.faults STRATEGY OPTIONS WHERE HOW FOLDER`.

One worker raises, or is killed, at WHERE; see `...conformance.faults`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ....adapters import Progress, create_strategy
from ...launch.job import watch_stacks
from ..faults import breaks, fail


class Fault:
    """Makes its worker fail at a given place."""

    def __init__(self, how: str, folder: Path) -> None:
        self.how, self.folder = how, folder
        self.breaks_in = ""

    def meet(self, where: str) -> np.float32:
        """Fail here, if this is the place."""
        if self.breaks_in == where:
            fail(self.how, self.folder)
        return np.float32(0)

    def guard(self, where: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """Return the method, with a failure before it if this is the place."""

        def guarded(*args: Any, **options: Any) -> Any:
            self.meet(where)
            return method(*args, **options)

        return guarded


def main(name: str, options: str, where: str, how: str, folder: str) -> None:
    """Train, and make one worker fail: in the compiled step, or where a weight is read or assigned."""
    watch_stacks()
    fault = Fault(how, Path(folder))

    def loss_fn(model: Any, batch: Any) -> tf.Tensor:
        met = tf.numpy_function(lambda: fault.meet("forward"), [], tf.float32)
        return tf.reduce_mean(tf.square(model(batch))) + tf.stop_gradient(met)

    strategy = create_strategy(name, **json.loads(options))
    with strategy:
        with strategy.scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            training = strategy.prepare(model, keras.optimizers.SGD(0.1), loss_fn)
        training.save(Path(folder) / "before", Progress())
        for batch in training.batches(np.ones((64, 2), np.float32), 8, epochs=2):
            float(training.step(batch))
            if batch.progress.step == 3 and breaks(strategy, where):
                fault.breaks_in = where
        fault.meet("collective")
        strategy.reduce(1.0)
        kernel = model.layers[0].kernel
        kernel.numpy, kernel.assign = fault.guard("save", kernel.numpy), fault.guard("load", kernel.assign)
        training.save(Path(folder) / "after", Progress())
        training.load(Path(folder) / "before")
    print("nothing broke")


if __name__ == "__main__":
    main(*sys.argv[1:])
