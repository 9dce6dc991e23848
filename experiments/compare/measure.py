"""Run the training program in a worker, and measure it."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, SupportsFloat

from ...adapters import Batch
from ...adapters.registry import strategy_row
from ..progress import tell

_Train = Callable[[int, Callable[[Batch, SupportsFloat], None]], float]


def measure(strategy: str, epochs: int) -> dict[str, Any]:
    """Return the curve and its cost: seconds and samples of each step, the worker's peak memory in MB, its state.

    The program uses the strategy that its launcher was started for. The state is `None` under TensorFlow, whose
    gradients are inside the compiled step and cannot be counted.
    """
    train, state_bytes = _of_framework(strategy)
    losses: list[SupportsFloat] = []
    samples: list[float] = []
    times = [time.perf_counter()]

    def on_step(batch: Batch, loss: SupportsFloat) -> None:
        times.append(time.perf_counter())
        losses.append(loss)  # reading it here would wait for it
        samples.append(float(batch.global_weight))
        if batch.progress.step == 0:
            tell(f"epoch {batch.progress.epoch} of {epochs}, loss {loss:.4f}")

    accuracy = train(epochs, on_step)
    peak_mb = peak_memory_mb()
    return {
        "test_accuracy": accuracy,
        "losses": [float(loss) for loss in losses],
        "samples": samples,
        "seconds": [after - before for before, after in itertools.pairwise(times)],
        "peak_mb": peak_mb,
        "state_bytes": state_bytes(strategy),
    }


def _of_framework(strategy: str) -> tuple[_Train, Callable[[str], float | None]]:
    """Return the training program of a strategy's framework, and the function that counts its state."""
    if strategy_row(strategy).framework == "tensorflow":
        from ..examples.digits_keras import train as train_keras

        return train_keras, lambda _: None
    from ..examples.digits_torch import train
    from .memory import state_bytes

    return train, state_bytes


def peak_memory_mb() -> float:
    """Return the largest resident memory of this process so far, in MB (1e6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's getrusage also counts the process before exec, a copy of the launcher.
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(kilobytes) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
