"""A small training under the strategy of FARANDOLE_STRATEGY that prints its losses, or fails as its arguments say.

python tensorflow_program.py none | kill | terminate | stop | operation
"""

from __future__ import annotations

import os
import signal
import sys

import keras
import numpy as np

from farandole.adapters import create_strategy
from farandole.plugins.launch.job import watch_stacks

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "stop": signal.SIGSTOP}


def main(fault: str, where: str) -> None:
    watch_stacks()
    if fault == "operation":
        keras.ops.ones(3)
    with create_strategy() as strategy:
        with strategy.scope():
            keras.utils.set_random_seed(1)
            model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "gelu"), keras.layers.Dense(1)])
            optimizer = keras.optimizers.AdamW(0.01)
            training = strategy.prepare(model, optimizer, lambda model, x: keras.ops.mean(keras.ops.square(model(x))))
        features = np.linspace(-1, 1, 80, dtype="float32").reshape(20, 4)
        losses = []
        for number, batch in enumerate(training.batches(features, 6, epochs=2, seed=3)):
            losses.append(float(training.step(batch)))
            if number == 2 and fault in SIGNALS:
                print("READY", flush=True)
                if strategy.worker.rank == strategy.worker.world_size - 1:
                    os.kill(os.getpid(), SIGNALS[fault])
                if where == "barrier":
                    strategy.barrier()
        said = " ".join(f"{loss:.6f}" for loss in losses)
        sys.stdout.write(f"LOSSES {said}\n")  # at once: workers of torchrun share one pipe
        sys.stdout.flush()


if __name__ == "__main__":
    main(*[*sys.argv[1:], "step"][:2])
