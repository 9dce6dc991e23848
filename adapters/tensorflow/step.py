"""One compiled training step: micro-batches forward and backward, one reduction, clipping, and the update."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from ..errors import DataError, OptionError
from ..training import StepOptions
from .compat import autograph
from .library import random_seed_generators
from .planning import planner_of
from .stamps import stamp_after
from .strategy import TensorFlowStrategy

Spec = Any
"""A micro-batch's structure, with a `tf.TensorSpec` for each tensor in it."""


SPARSE, DENSE = 1, 2
"""Kinds of gradients."""


class CompiledStep:
    """Trains on this worker's micro-batches of one global batch; all workers call it together.

    It is compiled once for each kind of micro-batch, on all workers at the same time. The workers compare what they
    will compile, because the collectives of different steps would never match.
    """

    def __init__(
        self,
        strategy: TensorFlowStrategy,
        model: Any,
        optimizer: Any,
        loss_fn: Callable[[Any, Any], Any],
        options: StepOptions,
        name: str,
        stamped: bool = False,
    ) -> None:
        self._strategy = strategy
        self._model = model
        self._optimizer = optimizer
        self._loss_fn = convert(loss_fn)
        self._options = options
        self._name = name
        self._stamped = stamped
        self._variables = list(model.trainable_variables)
        self._generators = random_seed_generators(model)
        self._functions: dict[Any, Any] = {}

    def __call__(
        self,
        micro: tuple[Any, ...],
        spec: Spec,
        fractions: Sequence[float],
        random_seed: int | None,
        largest: int | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Return the mean loss of the global batch, and the norm of its gradient if it is measured: (1,) or (2,).

        If the step is stamped, also return when each micro-batch had its loss and its gradients, when their sum was
        ready to be reduced, and when it was reduced: (2 * micro-batches + 2,).

        Args:
            micro: this worker's micro-batches.
            spec: their structure and types, the same on every worker.
            fractions: each micro-batch's weight over that of the global batch; 0 for a placeholder of an empty share.
            random_seed: seed of Keras's random layers in this step; `None` leaves them alone.
            largest: the samples in the largest micro-batch of any worker; `None` if that is not known.
        """
        seeded = random_seed is not None and bool(self._generators)
        planner = planner_of(self._model)
        if planner is not None:
            planner.before_step(self._largest(micro[0], largest), self._loss_fn)
        key = (str(tf.nest.map_structure(str, spec)), len(micro), seeded, planner and planner.generation)
        if key not in self._functions:
            self._functions[key] = self._compile(spec, len(micro), seeded)
        seed = tf.constant(random_seed if seeded else 0, tf.int64)
        weights = tf.constant(fractions, tf.float64)
        found: tuple[tf.Tensor, tf.Tensor | None] = self._functions[key](micro, weights, seed)
        return found

    def _largest(self, micro_batch: Any, samples: int | None) -> Any:
        """Return the specs of the largest micro-batch of any worker, the same on all of them."""
        if samples is None:  # of a batch that the user made
            leaves = [leaf for leaf in tf.nest.flatten(micro_batch) if leaf.shape.rank]
            samples = int(self._strategy.reduce(int(leaves[0].shape[0]) if leaves else 0, "max"))
        return tf.nest.map_structure(lambda leaf: with_samples(_spec(leaf), samples), micro_batch)

    def _compile(self, spec: Spec, count: int, seeded: bool) -> Any:
        def step(micro: tuple[Any, ...], fractions: tf.Tensor, seed: tf.Tensor) -> Any:
            def replica(micro: tuple[Any, ...], fractions: tf.Tensor, seed: tf.Tensor) -> Any:
                if seeded:
                    self._seed(seed)
                return self._train(micro, fractions, str(spec))

            return self._strategy.run(replica, (micro, fractions, seed))

        signature = ((spec,) * count, tf.TensorSpec((count,), tf.float64), tf.TensorSpec((), tf.int64))
        # The graph itself: a `tf.function` looks it up at each call, which takes as long as a small step.
        return tf.function(step, input_signature=signature, autograph=False).get_concrete_function()

    def _seed(self, seed: tf.Tensor) -> None:
        for number, generator in enumerate(self._generators):
            start = tf.random.experimental.stateless_fold_in(tf.stack([seed, 0]), number)
            generator.state.assign(tf.cast(start, generator.state.dtype))

    def _train(self, micro: tuple[Any, ...], fractions: tf.Tensor, spec: str) -> tuple[tf.Tensor, tf.Tensor | None]:
        total = tf.zeros((), tf.float64)
        gradients: list[Any] = [None] * len(self._variables)
        stamps: list[tf.Tensor] = []
        for number, micro_batch in enumerate(micro):
            loss, own = self._backward(micro_batch, fractions[number], stamps)
            total += loss
            gradients = [_plus(before, more) for before, more in zip(gradients, own, strict=True)]
        used, variables = agreed_gradients(
            self._strategy, spec, self._variables, gradients, dense=self._options.grad_norm
        )
        if not variables:
            raise OptionError("no trainable variable of the model has a gradient: loss_fn does not depend on them")
        # In the gradients' type: another type would cost the loss a reduction of its own.
        wide = (gradient.dtype for gradient in used if gradient.dtype in (tf.float32, tf.float64))
        total = tf.cast(total, next(wide, tf.float64))
        self._stamp(stamps, used)
        *reduced, total = self._strategy.sum_in_graph([*used, total], self._name)
        self._stamp(stamps, reduced)
        found = [total]
        if self._options.grad_norm:
            scale = self._optimizer.scale_loss(tf.ones((), reduced[0].dtype))
            norm = tf.linalg.global_norm(reduced)
            found.append(tf.cast(norm / tf.cast(scale, norm.dtype), total.dtype))
            if self._options.clip_norm is not None:
                reduced, _ = tf.clip_by_global_norm(reduced, self._options.clip_norm * scale, use_norm=norm)
        self._optimizer.apply(reduced, variables)
        return tf.stack(found), tf.stack(stamps) if stamps else None

    def _stamp(self, stamps: list[tf.Tensor], values: Sequence[Any]) -> None:
        if self._stamped:
            stamps.append(stamp_after(values))

    def _backward(self, micro_batch: Any, fraction: tf.Tensor, stamps: list[tf.Tensor]) -> tuple[tf.Tensor, list[Any]]:
        counts = fraction > 0
        with keep_when_placeholder(self._model, counts), tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in self._variables])
            loss = self._loss_fn(self._model, micro_batch)
            _check_loss(loss)
            self._stamp(stamps, [loss])
            scaled = self._optimizer.scale_loss(weigh(loss, fraction))
        gradients = tape.gradient(scaled, [variable.value for variable in self._variables])
        # A placeholder must not count, and 0 times its loss may be NaN: zero its gradients.
        there = [gradient for gradient in gradients if gradient is not None]
        if there:
            there = tf.cond(counts, lambda: there, lambda: [_zeros(gradient) for gradient in there])
        self._stamp(stamps, there)
        counted = iter(there)
        gradients = [None if gradient is None else next(counted) for gradient in gradients]
        return tf.where(counts, tf.cast(loss, tf.float64) * fraction, 0.0), gradients


def convert(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a user's function converted by autograph, for use in a graph without it: it may branch on tensors."""
    internal = autograph()
    converted: Callable[..., Any] = internal.convert(function, internal.status(), convert_by_default=True)
    return converted


def weigh(value: Any, fraction: tf.Tensor) -> Any:
    """Return a mean loss, or its gradient, times its fraction of the global batch: the workers' sum is the mean."""
    if isinstance(value, tf.IndexedSlices):
        return tf.IndexedSlices(weigh(value.values, fraction), value.indices, value.dense_shape)
    return value * tf.cast(fraction, value.dtype)


_SAME_DATA = "batch dimension aside, data must look alike on all workers"


def agree(strategy: TensorFlowStrategy, signature: str, kinds: Sequence[int] = (), rule: str = _SAME_DATA) -> list[int]:
    """Return the kind of each gradient over all workers: 0 if no worker has it, `DENSE` if the kinds differ.

    This runs once, when a step is compiled.

    Args:
        signature: what must be the same on all workers.
        rule: what the error says of it.

    Raises:
        DataError: the signatures differ.
    """
    with tf.init_scope():
        everyone = strategy.gather((signature, list(kinds)))
    first, _ = everyone[0]
    for rank, (other, _) in enumerate(everyone):
        if other != first:
            raise DataError(f"worker {rank} has {other}, worker 0 has {first}: {rule}")
    return [own[0] if len(set(own)) == 1 else DENSE for own in zip(*(own for _, own in everyone), strict=True)]


def agreed_gradients(
    strategy: TensorFlowStrategy,
    signature: str,
    variables: Sequence[Any],
    gradients: Sequence[Any],
    dense: bool,
    rule: str = _SAME_DATA,
) -> tuple[list[Any], list[Any]]:
    """Return the gradients that any worker has, as kinds that all can add up, and their variables; see `agree`.

    `dense` makes sparse ones dense: if sparse rows repeat an index, their norm is not that of their sum.
    """
    kinds = agree(strategy, signature, [_kind(gradient) for gradient in gradients], rule)
    used: list[Any] = []
    kept: list[Any] = []
    for variable, gradient, kind in zip(variables, gradients, kinds, strict=True):
        if kind:
            own = tf.zeros_like(variable.value) if gradient is None else gradient
            used.append(tf.convert_to_tensor(own) if dense or kind == DENSE else own)
            kept.append(variable)
    return used, kept


def _kind(gradient: Any) -> int:
    return 0 if gradient is None else SPARSE if isinstance(gradient, tf.IndexedSlices) else DENSE


@contextlib.contextmanager
def keep_when_placeholder(model: Any, counts: tf.Tensor) -> Iterator[None]:
    """In a compiled step, undo the block's changes of statistics (BatchNormalization's) if `counts` is false."""
    seeds = {id(generator.state) for generator in random_seed_generators(model)}
    kept = [variable for variable in model.non_trainable_variables if id(variable) not in seeds]
    before = [variable.value.read_value() for variable in kept]
    yield
    if kept:

        def restore() -> None:
            for variable, value in zip(kept, before, strict=True):
                variable.assign(value)

        tf.cond(counts, lambda: None, restore)


def spec_of(micro_batch: Any) -> Spec:
    """Return a micro-batch's spec, for any number of samples."""
    return tf.nest.map_structure(_spec, micro_batch)


def with_samples(spec: Any, samples: int | None) -> Any:
    """Return a tensor's spec with a number of samples; other specs as they are."""
    if isinstance(spec, tf.TensorSpec) and spec.shape.rank:
        return tf.TensorSpec([samples, *spec.shape[1:]], spec.dtype)
    return spec


def fits(micro: Sequence[Any], spec: Spec) -> bool:
    """Whether micro-batches match `spec`."""
    for micro_batch in micro:
        try:
            pairs = zip(tf.nest.flatten(micro_batch), tf.nest.flatten(spec), strict=True)
            if not all(expected.is_compatible_with(leaf) for leaf, expected in pairs):
                return False
            tf.nest.assert_same_structure(micro_batch, spec)
        except (TypeError, ValueError):
            return False
    return True


def _spec(leaf: Any) -> Any:
    spec = tf.type_spec_from_value(leaf)
    if isinstance(spec, tf.TensorSpec):
        return tf.TensorSpec([None, *spec.shape[1:]] if spec.shape.rank else spec.shape, spec.dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec([None, *spec.shape[1:]], spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return tf.SparseTensorSpec([None, *spec.shape[1:]], spec.dtype)


def _check_loss(loss: Any) -> None:
    if not tf.is_tensor(loss) or loss.shape.rank not in (0, None):
        kind = f"a tensor of shape {tuple(loss.shape)}" if tf.is_tensor(loss) else type(loss).__name__
        raise OptionError(f"loss_fn must return the mean loss of a micro-batch, a scalar tensor, but returned {kind}")


def _plus(before: Any, more: Any) -> Any:
    if before is None or more is None:
        return more if before is None else before
    return tf.convert_to_tensor(before) + tf.convert_to_tensor(more)


def _zeros(gradient: Any) -> Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(tf.zeros_like(gradient.values), gradient.indices, gradient.dense_shape)
    return tf.zeros_like(gradient)
