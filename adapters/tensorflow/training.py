"""A training on any TensorFlow engine: its step, its data, its checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from os import PathLike
from typing import Any, SupportsFloat

import keras
import tensorflow as tf

from ..batches import Batch, Batches
from ..checkpoint.save import Saver
from ..errors import DataError, OptionError
from ..evaluation import SampleMean
from ..order import check_batch_size
from ..pending import Pending
from ..progress import Progress
from ..training import StepOptions, Training
from ..weighting import total_of, weight_of
from .checkpoint import TensorFlowSave, load, named_weights
from .compat import OptimizerView
from .data import StepData, step_data
from .evaluation import compiled_evaluation
from .library import check_model, check_optimizer, layers_of
from .stamps import Clock
from .step import CompiledStep, Spec, fits, spec_of
from .strategy import TensorFlowStrategy


class TensorFlowTraining(Training):
    """A Keras model on one engine."""

    _strategy: TensorFlowStrategy

    def __init__(
        self,
        strategy: TensorFlowStrategy,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        options: StepOptions,
    ) -> None:
        super().__init__(strategy, options)
        self._seam.prepare(model, self._run())
        _check(model, optimizer, options.scheduler)
        self.model = model
        self.optimizer = optimizer
        self._specs: list[Spec] = []
        prepare_variables(strategy, model, optimizer)
        self._frozen = [variable for variable in model.variables if not variable.trainable]
        name = f"training{strategy.next_training()}"
        stamped = any(self._seam.watches(phase) for phase in ("forward", "backward", "wait"))
        self._compiled = CompiledStep(strategy, model, optimizer, loss_fn, options, name, stamped)
        self._saver = Saver(strategy, lambda storage, keep: TensorFlowSave(storage, self, strategy, keep))
        if strategy.worker.world_size > 1:
            warn_of_batch_norm(model, stacklevel=5)

    def _step(self, batch: Batch) -> Pending:
        accumulate = self._options.accumulate
        if len(batch.micro) != accumulate:
            raise OptionError(f"the batch has {len(batch.micro)} micro-batches, but accumulate={accumulate}")
        for variable in self._frozen:
            if variable.trainable:
                raise OptionError(
                    f"the variable {variable.path!r} was frozen when the model was prepared, so no step trains it: set "
                    "trainable=True before prepare()"
                )
        total = total_of(batch)
        spec = next((spec for spec in self._specs if fits(batch.micro, spec)), None) or spec_of(batch.micro[0])
        fractions = [own / total for own in batch.weights]
        with self._seam.phase("update"):
            clock = Clock()
            found, stamps = self._compiled(batch.micro, spec, fractions, batch.random_seed, batch.largest)
            if stamps is not None:
                self._note(clock.start, *clock.read(*stamps.numpy()))
        if self._options.grad_norm:
            self._grad_norm = self._pending(found, 1)
        return self._pending(found, 0)

    def _note(self, *times: float) -> None:
        """Report when the step began, when each micro-batch had its loss and its gradients, and when it waited."""
        *micro, begin, reduced = times
        for number in range(len(micro) // 2):
            started, forward, backward = micro[2 * number : 2 * number + 3]
            self._seam.note("forward", started, forward, number)
            self._seam.note("backward", forward, backward, number)
        self._seam.note("wait", begin, reduced)

    def _pending(self, found: tf.Tensor, number: int) -> Pending:
        def read() -> float:
            with self._strategy.noticing_lost_workers():
                return float(found.numpy()[number])

        return Pending(read)

    def batches(
        self,
        dataset: Any,
        global_batch_size: int,
        *,
        epochs: int = 1,
        seed: int = 0,
        start: Progress | None = None,
        shuffle: bool = True,
        weight: Callable[[Any], SupportsFloat] | None = None,
        **loader_options: Any,
    ) -> Batches:
        check_batch_size("global_batch_size", global_batch_size, self._strategy.worker.world_size)
        data = self._data(dataset, global_batch_size, seed, shuffle, self._options.accumulate, loader_options)
        if data.spec not in self._specs:
            self._specs.append(data.spec)
        begin = self._position.begin(start, epochs)
        remaining = data.remaining(begin, epochs)
        self._position.begun(begin)
        return Batches(self._batches(data.steps(begin, epochs), weight), remaining, self._seam)

    def evaluate(self, dataset: Any, fn: Callable[[Any, Any], Any], batch_size: int, **loader_options: Any) -> Any:
        check_batch_size("batch_size", batch_size, self._strategy.worker.world_size)
        data = self._data(dataset, batch_size, 0, False, 1, loader_options)
        evaluate = compiled_evaluation(self._strategy, self.model, fn, data.spec)
        mean = SampleMean()
        with self._strategy.noticing_lost_workers():
            for batch in data.steps(Progress(), 1):
                mean.add(evaluate(batch.micro[0]), int(batch.weights[0]))
        return mean.over_workers(self._strategy)

    def _data(
        self,
        dataset: Any,
        global_batch_size: int,
        seed: int,
        shuffle: bool,
        accumulate: int,
        options: Mapping[str, Any],
    ) -> StepData:
        worker = self._strategy.worker
        data = step_data(dataset, global_batch_size, seed, shuffle, worker, accumulate, options)
        everyone = self._strategy.gather(str(data))
        for rank, other in enumerate(everyone):
            if other != everyone[0]:
                raise DataError(
                    f"worker {rank} has {other}, worker 0 has {everyone[0]}: pass the same dataset on every worker"
                )
        return data

    def _batches(self, steps: Iterator[Batch], weight: Callable[[Any], SupportsFloat] | None) -> Iterator[Batch]:
        for batch in steps:
            if weight is None:
                yield batch
                continue
            weights = tuple(
                weight_of(micro_batch, weight) if count else 0.0
                for micro_batch, count in zip(batch.micro, batch.weights, strict=True)
            )
            with self._seam.phase("wait"):
                total = self._strategy.reduce(float(sum(weights)), "sum")
            yield replace(batch, weights=weights, global_weight=total, samples=int(sum(batch.weights)))

    def weights(self) -> Iterator[tuple[str, tf.Tensor]]:
        for name, variable in named_weights(self.model).items():
            with tf.device("/CPU:0"):
                yield name, tf.identity(variable.value)

    def save(
        self,
        path: str | PathLike[str],
        progress: Progress,
        extras: Mapping[str, Any] | None = None,
        *,
        wait: bool = True,
        keep: int | None = None,
    ) -> None:
        with self._strategy.noticing_lost_workers(), self._seam.phase("save"):
            self._saver.save(path, progress, extras, wait, keep)

    def load(self, path: str | PathLike[str]) -> Progress:
        with self._strategy.noticing_lost_workers(), self._seam.phase("load"):
            self._saver.settle()
            progress = load(self._strategy, path, self)
        self._position.load(progress)
        return progress


def prepare_variables(strategy: TensorFlowStrategy, model: Any, optimizer: Any) -> None:
    """Build the optimizer, and have all workers start from rank 0's model and optimizer.

    Raises:
        OptionError: the model has no variables yet, its variables were created outside of the strategy's scope, or the
            optimizer was built for another model.
    """
    if not model.built or not model.trainable_variables:
        raise OptionError(
            "the model has no trainable variables yet: give it a keras.Input, or call model.build(input_shape), first"
        )
    with strategy.scope():
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
    held = {id(variable) for variable in OptimizerView(optimizer).trainable_variables}
    for variable in model.trainable_variables:
        if id(variable) not in held:
            raise OptionError(
                f"the optimizer holds variables of another model, not {variable.path!r}: make a new optimizer: "
                "each one keeps the variables that it was built for"
            )
    variables = [*model.variables, *optimizer.variables]
    outside = [variable for variable in variables if not strategy.owns(variable.value)]
    if outside:
        whose = "model" if any(outside[0] is variable for variable in model.variables) else "optimizer"
        raise OptionError(
            f"the {whose}'s variable {outside[0].path!r} was made outside of strategy.scope(), where {strategy.name!r} "
            "cannot keep it the same on all workers: build and compile the model inside `with strategy.scope():`"
        )
    strategy.prepare_optimizer(optimizer)
    strategy.start_from_rank_0([variable.value for variable in variables])


def warn_of_batch_norm(model: Any, stacklevel: int) -> None:
    """Warn once of BatchNormalization that is not synchronized between workers."""
    layers = [layer for layer in layers_of(model) if isinstance(layer, keras.layers.BatchNormalization)]
    local = [layer.name for layer in layers if not layer.synchronized]
    if local:
        warnings.warn(
            f"BatchNormalization ({local[0]!r}{' and others' if len(local) > 1 else ''}) normalizes over one worker's "
            "micro-batch, so the curve depends on the number of workers; GroupNormalization, LayerNormalization, or "
            "under tf_multiworker BatchNormalization(synchronized=True), would not",
            stacklevel=stacklevel,
        )


def _check(model: Any, optimizer: Any, scheduler: Any) -> None:
    check_model(model)
    check_optimizer(optimizer)
    if scheduler is not None:
        raise OptionError(
            "Keras schedules belong to the optimizer: pass a keras.optimizers.schedules.LearningRateSchedule as its "
            "learning_rate, and leave scheduler out"
        )
    if optimizer.gradient_accumulation_steps:
        raise OptionError(
            "the optimizer accumulates gradients itself (gradient_accumulation_steps): leave that out, and pass "
            "accumulate to prepare(), which splits the global batch instead"
        )
