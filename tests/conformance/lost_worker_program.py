"""One worker dies; the other prints what each method then raises: `lost_worker_program.py STRATEGY FOLDER`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from farandole.adapters import Progress, Strategy, Training, create_strategy


def prepare(strategy: Strategy) -> tuple[Training, Any]:
    if strategy.capabilities.framework == "torch":
        import torch

        model = torch.nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean()), torch.ones(64, 2)
    import keras
    import numpy as np

    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    loss = lambda m, x: keras.ops.mean(keras.ops.square(m(x)))  # noqa: E731
    return strategy.prepare(net, keras.optimizers.SGD(0.1), loss), np.ones((64, 2), np.float32)


def say_what_a_read_raises(strategy: Strategy) -> None:
    """A cloud file system raises the same types of error as TensorFlow's cluster, and no worker is lost."""
    import tensorflow as tf

    said = "Error executing an HTTP request: libcurl code 56, error details: Recv failure: Connection reset by peer"
    try:
        with strategy.noticing_lost_workers():
            raise tf.errors.UnavailableError(None, None, said)
    except Exception as error:
        print(f"READ {type(error).__name__}", flush=True)


def main(name: str, folder: str) -> None:
    with create_strategy(name) as strategy:
        with strategy.scope():
            training, data = prepare(strategy)
        path = Path(folder) / "before"
        training.save(path, Progress())
        batches = iter(training.batches(data, 8, epochs=2))
        float(training.step(next(batches)))
        strategy.barrier()
        if strategy.worker.rank == 1:
            os._exit(9)
        if strategy.capabilities.framework == "tensorflow":
            say_what_a_read_raises(strategy)
        calls: dict[str, Callable[[], Any]] = {
            "step": lambda: float(training.step(next(batches))),
            "reduce": lambda: strategy.reduce(1.0),
            "gather": lambda: strategy.gather(1),
            "broadcast": lambda: strategy.broadcast(1, root=1),
            "barrier": strategy.barrier,
            "save": lambda: training.save(Path(folder) / "after", Progress()),
            "load": lambda: training.load(path),
        }
        for method, call in calls.items():
            try:
                call()
                print(f"CALL {method} returned", flush=True)
            except Exception as error:
                print(f"CALL {method} {type(error).__name__} {error}".replace("\n", " "), flush=True)
        strategy.barrier()


if __name__ == "__main__":
    main(*sys.argv[1:])
