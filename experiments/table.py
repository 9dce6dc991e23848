"""The table of experiments: a name, the place of its class, and a line of description."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from ..adapters.errors import OptionError, did_you_mean
from .experiment import Experiment


@dataclass(frozen=True)
class Entry:
    """One experiment by name; `target` is `module:Class`, imported on request."""

    name: str
    target: str
    description: str

    def load(self) -> Experiment:
        """Import the experiment and create it."""
        module, _, attribute = self.target.partition(":")
        experiment: Experiment = getattr(importlib.import_module(module, package=__package__), attribute)()
        return experiment


_ENTRIES = (
    Entry(
        "compare",
        ".compare.experiment:Compare",
        "Train one program on real data under each strategy: accuracy, speed, memory, and the same curve.",
    ),
    Entry(
        "parity",
        ".parity.experiment:Parity",
        "Compare losses and weights of every engine, in every variant, with plain code in one process.",
    ),
    Entry(
        "overhead",
        ".overhead.experiment:Overhead",
        "Time a training step against the same model hand-written on the raw engine.",
    ),
    Entry(
        "checkpoint",
        ".checkpoint.experiment:Checkpoint",
        "Load what each engine saved into each other one and resume; time large saves against raw PyTorch's.",
    ),
    Entry(
        "waiting",
        ".waiting.experiment:Waiting",
        "Delay one worker before each step, and compare the others' waiting with the delay.",
    ),
    Entry(
        "metrics",
        ".metrics.experiment:Metrics",
        "Time WorkerMetrics against training without it, and slow single workers to see whether it names them.",
    ),
    Entry(
        "memory",
        ".memory.experiment:Memory",
        "Measure memory and time with gradient checkpointing and with budgets, and compare losses and gradients.",
    ),
)
EXPERIMENTS = {entry.name: entry for entry in _ENTRIES}


def experiment_entry(name: str) -> Entry:
    """Return one experiment.

    Raises:
        OptionError: no such name; the message suggests the nearest one.
    """
    if name not in EXPERIMENTS:
        raise OptionError(
            f"there is no experiment {name!r}.{did_you_mean(name, EXPERIMENTS)} There are: {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name]
