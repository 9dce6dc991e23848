"""A logger for Lightning's Trainer that keeps what every worker logs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from .. import metrics
from .callbacks import WorkerMetrics
from .package import trainer_part

_Logger: Any = trainer_part("loggers").Logger


class MetricsLogger(_Logger):  # type: ignore[misc]
    """Adds what is logged in Lightning, on every worker, to the run of a `WorkerMetrics`, and so to its sinks.

    metrics = WorkerMetrics(sinks=[Comet(project="digits")])
    trainer = Trainer(callbacks=[metrics], logger=MetricsLogger(metrics))

    Lightning's own loggers drop what workers other than rank 0 log, and its `CometLogger(online=False)` logs nothing.
    Numbers have the step of the run: updates since it began. What is logged before the first step belongs to it; after
    the last one, for example in `trainer.test`, to that. Hyperparameters are noted with the run.
    """

    def __init__(self, metrics: WorkerMetrics) -> None:
        super().__init__()
        self._skin = metrics
        self._version = time.strftime("%Y%m%d-%H%M%S")

    @property
    def name(self) -> str:
        """In paths of checkpoints that are given none."""
        return "farandole"

    @property
    def version(self) -> str:
        """In paths of checkpoints that are given none: when this was made."""
        return self._version

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Record numbers of this worker."""
        self._core.log({name: value for name, value in metrics.items() if name != "epoch"})  # records have it

    def log_hyperparams(self, params: Any = None, *args: Any, **kwargs: Any) -> None:
        """Note hyperparameters with the run."""
        given = {} if params is None else params if isinstance(params, Mapping) else vars(params)
        self._core.parameters |= dict(_flat({**given, **kwargs}))

    def finalize(self, status: str) -> None:
        """Let the sinks have what was logged after the training."""
        self._core.settle()

    @property
    def _core(self) -> metrics.WorkerMetrics:
        core = self._skin.callback
        assert isinstance(core, metrics.WorkerMetrics)
        return core


def _flat(params: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
