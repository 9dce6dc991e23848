"""The object in place of a Keras model's `tf.distribute` strategy: it runs our steps in Keras's own loops."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from ...adapters.errors import OptionError
from ...adapters.tensorflow.compat import mask_of
from ...adapters.tensorflow.step import agree, keep_when_placeholder
from ...adapters.tensorflow.strategy import TensorFlowStrategy
from ...adapters.tensorflow.training import prepare_variables
from .compat import CompiledLoss, EpochIterator, FitModel
from .data import OTHER_ORDER, fingerprint, own_rows, specs_of_share
from .metrics import MetricStates
from .optimizer import reduce_before_applying
from .records import LOSS, ROWS, TIMES, Records

_REFUSED_REDUCTIONS = {
    "sum": "a sum grows with the batch: use reduction='sum_over_batch_size'",
    "mean_with_sample_weight": "workers would divide by their own weights: use reduction='sum_over_batch_size'",
    "none": "its values have no mean: use reduction='sum_over_batch_size'",
}


class Distribution:
    """Takes the place of `keras.Model`'s `tf.distribute.Strategy`, with the part of its interface that Keras calls.

    Keras gives it each step with a global batch. It runs the step on this worker's share, as a replica of the strategy.

    records: the record of each training step for farandole's callbacks.
    rows: the samples of this fit's global batches, if they are known.
    """

    num_replicas_in_sync = 1  # Keras divides losses by it, but here they are means over the global batch

    def __init__(self, model: Any, strategy: TensorFlowStrategy) -> None:
        self._model = model
        self._strategy = strategy
        self.records = Records(strategy)
        self.rows: int | None = None
        self._steps = 0
        # tf.data's autotuner may take seconds to end after an epoch, on any worker, while all others wait. Keras's own
        # datasets of arrays need no tuning; a user's dataset may.
        self.tunes_datasets = True

    def check(self) -> None:
        """Raise `OptionError` for features that do not work on this engine as in one process."""
        model, worker = self._model, self._strategy.worker
        variables = [*model.variables, *model.optimizer.variables]
        outside = [variable for variable in variables if not self._strategy.owns(variable.value)]
        if outside:
            what = "compiled" if any(outside[0] is variable for variable in model.optimizer.variables) else "built"
            raise OptionError(
                f"the model {model.name!r} was {what} outside of strategy.scope(), where {outside[0].path!r} was made: "
                "build and compile it inside `with strategy.scope():`"
            )
        self._check_control_flow()
        if worker.world_size == 1:
            return
        if model.jit_compile:
            raise OptionError(
                "jit_compile=True: XLA cannot compile the reduction between workers. Compile the model with "
                "jit_compile=False"
            )
        if model.run_eagerly:
            raise OptionError("run_eagerly=True runs on one worker only: compile the model with run_eagerly=False")
        for output in getattr(model, "outputs", None) or []:
            if mask_of(output) is not None:
                raise OptionError(
                    "the model's output has a mask, and each worker would divide by its own mask's count: weigh the "
                    "samples with sample_weight instead, or write a loop with batches(weight=...)"
                )

    def _check_control_flow(self) -> None:
        model, name = self._model, self._strategy.name
        if self._strategy.steps_in_control_flow:
            return
        if model.steps_per_execution > 1:
            raise OptionError(
                f"steps_per_execution={model.steps_per_execution}: TensorFlow cannot run steps of {name!r} in a loop. "
                "Compile the model with steps_per_execution=1, or use tf_horovod"
            )
        if model.optimizer.gradient_accumulation_steps:
            raise OptionError(
                f"gradient_accumulation_steps: TensorFlow cannot hold back updates of {name!r}. Raise batch_size "
                "instead, use tf_horovod, or write a loop with strategy.prepare(accumulate=...)"
            )

    def prepare(self) -> None:
        """Make all workers start from rank 0's model and optimizer."""
        prepare_variables(self._strategy, self._model, self._model.optimizer)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """TensorFlow's own scope, in which Keras builds unbuilt layers."""
        with self._strategy.scope():
            yield

    def build(self, iterator: Any = None, data_batch: Any = None) -> None:
        """Build unbuilt layers, from the structure of the batches.

        Keras itself would read a batch, so that a dataset that reshuffles would begin with its second order.
        """
        specs = data_batch
        if iterator is not None:
            batches = EpochIterator(iterator)
            specs = keras.tree.map_structure(_spec_or_none, batches.dataset.element_spec)
            # Compare now: later a worker with other samples would fail alone, and one with more steps would hang.
            agree(self._strategy, f"{batches.num_batches} batches of {_signature_of(specs)}")
        with self.scope():
            FitModel(self._model).build(data_batch=specs)

    def experimental_distribute_dataset(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the dataset as it is: every worker reads the global batches."""
        options = tf.data.Options()
        options.deterministic = True
        if not self.tunes_datasets:
            options.autotune.enabled = False
        return dataset.with_options(options)

    def share_of(self, iterator: Any) -> Any:
        """Return the specs of the largest share of an iterator's batches."""
        return specs_of_share(iterator.element_spec, self.rows, self._strategy.worker)

    def run(self, step: Callable[[Any], Any], args: Sequence[Any] = ()) -> Any:
        """Run one of Keras's steps on a global batch; Keras compiles the caller."""
        (batch,) = args
        self._steps += 1
        name = f"keras{self._steps}"
        model = self._model
        if step == model.train_step:
            run = self._train
        elif step == model.test_step:
            run = self._test
        else:  # Keras wraps predict_step in a function of its own
            run = self._predict

        def replica(data: Any) -> Any:
            # Keras's weight decay must wait for the batch: otherwise it runs even when the dataset has ended.
            with tf.control_dependencies(_tensors(data)):
                return run(step, data, name)

        return self._strategy.run(replica, (batch,))

    def _train(self, step: Callable[[Any], Any], batch: Any, name: str) -> Any:
        self._check_losses()
        self._agree(batch)
        rows = own_rows(batch, self._strategy.worker)
        counts = rows.fraction > 0
        metrics = MetricStates(self._model, self._strategy)
        times: list[tf.Tensor] | None = [] if self.records.timed else None
        with (
            reduce_before_applying(self._model, self._strategy, rows.fraction, name, times),
            keep_when_placeholder(self._model, counts),
        ):
            logs = step(rows.data)
        logs = metrics.reduce(logs, rows.fraction, fingerprint(batch), name, OTHER_ORDER)
        if times:
            logs = {**logs, TIMES: tf.stack(times)}
        return {**logs, LOSS: metrics.step_loss(), ROWS: rows.count} if self.records.told else logs

    def _test(self, step: Callable[[Any], Any], batch: Any, name: str) -> Any:
        self._check_losses()
        self._agree(batch)
        rows = own_rows(batch, self._strategy.worker)
        metrics = MetricStates(self._model, self._strategy)
        logs = step(rows.data)
        return metrics.reduce(logs, rows.fraction, fingerprint(batch), name, OTHER_ORDER)

    def _predict(self, step: Callable[[Any], Any], batch: Any, name: str) -> Any:
        self._agree(batch)
        rows = own_rows(batch, self._strategy.worker)
        outputs = step(rows.data)
        leaves = keras.tree.flatten(outputs)
        count = tf.where(rows.fraction > 0, tf.shape(leaves[0])[0], 0)
        gathered = [
            self._strategy.gather_in_graph(leaf[:count], f"{name}.{number}") for number, leaf in enumerate(leaves)
        ]
        return keras.tree.pack_sequence_as(outputs, gathered)

    def _agree(self, batch: Any) -> None:
        """Compare the structure of all workers' batches; this runs once, when a step is compiled."""
        agree(self._strategy, _signature_of(batch))

    def _check_losses(self) -> None:
        compiled = FitModel(self._model).compiled_loss
        if self._strategy.worker.world_size == 1 or compiled is None:
            return
        for loss in CompiledLoss(compiled).losses or []:
            reduction = str(getattr(loss.loss, "reduction", "sum_over_batch_size")).lower()
            if reduction in _REFUSED_REDUCTIONS:
                raise OptionError(
                    f"the loss {loss.loss.name!r} has reduction={reduction!r}: {_REFUSED_REDUCTIONS[reduction]}"
                )


def _tensors(batch: Any) -> list[tf.Tensor]:
    return [leaf for leaf in tf.nest.flatten(batch, expand_composites=True) if leaf is not None]


def _spec_or_none(spec: Any) -> Any:
    """Return `None` for a missing part of a batch, for example an optional input."""
    return spec if hasattr(spec, "dtype") else None


def _signature_of(batch: Any) -> str:
    return str(keras.tree.map_structure(_signature, batch))


def _signature(leaf: Any) -> str:
    return "None" if leaf is None else f"{leaf.dtype.name}{[None, *leaf.shape[1:]]}"
