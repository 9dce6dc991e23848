"""Callbacks that Horovod's Keras users know, for any strategy."""

from __future__ import annotations

from typing import Any, Literal

import keras

from ...adapters.errors import OptionError
from ...adapters.strategy import Strategy
from .compat import ScheduledOptimizer

ScalePolicy = Literal["none", "linear", "sqrt"]


class BroadcastInitialState(keras.callbacks.Callback):  # type: ignore[misc]
    """Gives worker `root`'s weights and optimizer state to all workers when training begins.

    `distribute` does so from rank 0 at each `fit`; this is for models without it, or another root.
    """

    def __init__(self, strategy: Strategy, root: int = 0) -> None:
        super().__init__()
        self._strategy = strategy
        self._root = root

    def on_train_begin(self, logs: Any = None) -> None:
        variables = [*self.model.variables, *self.model.optimizer.variables]
        values = self._strategy.broadcast([variable.numpy() for variable in variables], self._root)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


class MetricAverage(keras.callbacks.Callback):  # type: ignore[misc]
    """Replaces the numbers in an epoch's logs by their mean over all workers, for the callbacks after it.

    Metrics under `distribute` are global already; this is for a worker's own numbers.
    """

    def __init__(self, strategy: Strategy) -> None:
        super().__init__()
        self._strategy = strategy

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if logs:
            numbers = {name: float(value) for name, value in sorted(logs.items())}
            logs.update(self._strategy.reduce(numbers, "mean"))


class LearningRateWarmup(keras.callbacks.Callback):  # type: ignore[misc]
    """Raises the learning rate step by step to its target in the first epochs (https://arxiv.org/abs/1706.02677).

    Args:
        learning_rate: the rate for one worker.
        warmup_epochs: how long it rises; it may be a fraction.
        policy: the target is the rate itself ("none"), times the number of workers ("linear"), or times its square root
            ("sqrt"). By default nothing is scaled.
        start_factor: the first step's fraction of the target; by default 1 / number of workers, as in Horovod.

    Raises:
        OptionError: an argument is out of range; at the start, if the optimizer follows a schedule, or the number of
            steps of an epoch is unknown.
    """

    def __init__(
        self,
        strategy: Strategy,
        learning_rate: float,
        warmup_epochs: float = 5,
        policy: ScalePolicy = "none",
        start_factor: float | None = None,
    ) -> None:
        super().__init__()
        workers = strategy.worker.world_size
        factors = {"none": 1.0, "linear": float(workers), "sqrt": workers**0.5}
        if policy not in factors:
            raise OptionError(f"policy={policy!r} must be one of {', '.join(factors)}")
        if not warmup_epochs > 0:
            raise OptionError(f"warmup_epochs={warmup_epochs} must be positive")
        if not learning_rate > 0:
            raise OptionError(f"learning_rate={learning_rate} must be positive")
        self.target = learning_rate * factors[policy]
        self._start = 1 / workers if start_factor is None else start_factor
        if not 0 <= self._start <= 1:
            raise OptionError(f"start_factor={start_factor} must be from 0 to 1")
        self._warmup_epochs = warmup_epochs
        self._epoch = 0
        self._done = False

    def on_train_begin(self, logs: Any = None) -> None:
        learning_rate = ScheduledOptimizer(self.model.optimizer).learning_rate
        if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            raise OptionError("the optimizer follows a learning-rate schedule: put the warm-up into the schedule")
        if not self.params.get("steps"):
            raise OptionError("LearningRateWarmup needs the number of steps of an epoch: pass steps_per_epoch to fit")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        done = (self._epoch + batch / self.params["steps"]) / self._warmup_epochs
        if done < 1:
            self.model.optimizer.learning_rate = self.target * (self._start + (1 - self._start) * done)
        elif not self._done:  # once: from now on others may change the rate
            self.model.optimizer.learning_rate = self.target
            self._done = True
