"""Replace a Keras layer's call by one that is computed again in the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from ....adapters.errors import OptionError
from ....adapters.tensorflow.compat import ModelView, VariableView, in_stateless_scope, mask_of, set_mask
from .context import Recording, Values, in_context_of, state_of, training_now, values_of
from .refusals import refuse_other, refuse_unrepeatable


class CheckpointedLayer:
    """A layer whose call is replaced: it keeps only its inputs for the backward pass, in compiled functions.

    What is executed eagerly is not checkpointed.

    Args:
        name: what to call the layer in messages.

    active: whether it is checkpointed in functions that are compiled from now on.
    observer: called with each call's function and its arguments, in place of what is done here.
    """

    def __init__(self, layer: Any, name: str) -> None:
        self.layer = layer
        self.name = name
        self.active = True
        self.observer: Callable[[Callable[..., Any], Any], Any] | None = None
        self._own = vars(layer).get("call")
        call = layer.call

        @functools.wraps(call)
        def checkpointed(*args: Any, **options: Any) -> Any:
            if self.observer is not None:
                return self.observer(call, (args, options))
            # In a stateless scope Keras looks for shapes, or a layer around this one is checkpointed or recomputed.
            if not self.active or tf.executing_eagerly() or in_stateless_scope():
                return call(*args, **options)
            return _Call(layer, name, call, (args, options))()

        layer.call = checkpointed

    def undo(self) -> None:
        """Give the layer its call back."""
        if self._own is None:
            del self.layer.call
        else:
            self.layer.call = self._own


class _Call:
    """One call of a checkpointed layer, in a graph."""

    def __init__(self, layer: Any, name: str, call: Callable[..., Any], arguments: Any) -> None:
        self._layer = layer
        self._name = name
        self._call = call
        self._arguments = arguments
        self._leaves = tf.nest.flatten(arguments, expand_composites=True)
        self._places = [number for number, leaf in enumerate(self._leaves) if isinstance(leaf, tf.Tensor)]

    def __call__(self) -> Any:
        self._training = training_now()
        self._masks = [mask_of(self._leaves[place]) for place in self._places]  # some layers take them off
        computed: list[tf.Tensor] = tf.custom_gradient(self._compute)(*[self._leaves[place] for place in self._places])
        for variable, value in self._assigned:
            variable.assign(value)
        losses = len(self._first.losses)
        for loss in computed[len(computed) - losses :]:
            self._layer.add_loss(loss)
        return self._first.with_tensors(computed[: len(computed) - losses])

    def _compute(self, *tensors: tf.Tensor) -> Any:
        """Return the layer's tensors and losses, and the function that recomputes them for their gradients."""
        state = state_of(self._layer)
        unbuilt = [layer for layer in ModelView(self._layer).flat_layers() if not layer.built]
        with Recording(state) as scope:
            self._first = first = _Outcome(lambda: self._called(tensors), scope)
        self._assigned = scope.assigned
        self._refuse(first, [layer for layer in unbuilt if layer.built])
        known = {id(variable) for variable, _ in state}
        state = [*state, *values_of([variable for variable, _ in self._assigned if id(variable) not in known])]

        def gradient(*upstream: Any, variables: Sequence[Any] | None = None) -> Any:
            found = self._gradients(tensors, state, upstream, variables or ())
            inputs, weights = found[: len(tensors)], found[len(tensors) :]
            return inputs if variables is None else (inputs, weights)

        return first.tensors, gradient

    def _gradients(
        self, tensors: Sequence[tf.Tensor], state: Values, upstream: Sequence[Any], variables: Sequence[Any]
    ) -> list[Any]:
        """Call the layer again, and return the gradients of its tensors and variables; `None` if there is none."""
        # Not before its gradients are there: TensorFlow would recompute all layers at once.
        with tf.control_dependencies([own for own in upstream if own is not None]):
            again = [tf.identity(tensor) for tensor in tensors]
        for copied, mask in zip(again, self._masks, strict=True):
            set_mask(copied, mask)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([tensor for tensor in again if _has_gradient(tensor)])
            tape.watch(list(variables))
            with Recording(state) as scope:
                outcome: _Outcome = in_context_of(
                    self._layer, self._training, lambda: _Outcome(lambda: self._called(again), scope)
                )
        refuse_other(self._name, self._first.operations, outcome.operations)
        pairs = [
            (own, above)
            for own, above in zip(outcome.tensors, upstream, strict=True)
            if above is not None and _has_gradient(own) and not _is_zero(above)
        ]
        if not pairs:
            return [None] * (len(tensors) + len(variables))
        sources = [tensor for tensor in again if _has_gradient(tensor)]
        found = tape.gradient(
            [own for own, _ in pairs], [*sources, *variables], output_gradients=[above for _, above in pairs]
        )
        own = iter(found[: len(sources)])
        inputs = [next(own) if _has_gradient(tensor) else None for tensor in again]
        dense = [tf.convert_to_tensor(one) if isinstance(one, tf.IndexedSlices) else one for one in inputs]
        return [*dense, *found[len(sources) :]]

    def _called(self, tensors: Sequence[tf.Tensor]) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, options = tf.nest.pack_sequence_as(self._arguments, leaves, expand_composites=True)
        return self._call(*args, **options)

    def _refuse(self, first: _Outcome, built: Sequence[Any]) -> None:
        if built:
            raise OptionError(
                f"the layer {built[0].name!r} in {self._name!r} was not built before training: call the model on an "
                "example, or build its layers in build()"
            )
        refuse_unrepeatable(self._name, first.operations)
        for variable, _ in self._assigned:
            if VariableView(variable).value is None or VariableView(variable).value.trainable:
                raise OptionError(
                    f"the layer {self._name!r} changes {variable.path!r} in its forward pass, which would be wrong "
                    "when it is recomputed: make it in build() with trainable=False, or leave the layer out of layers"
                )


class _Outcome:
    """What a call returned.

    tensors: those in what it returned, and then the losses that it added.
    operations: those that it made.
    """

    def __init__(self, run: Callable[[], Any], scope: Recording) -> None:
        graph = tf.compat.v1.get_default_graph()
        begin = len(graph.get_operations())
        self._returned = run()
        self.operations = graph.get_operations()[begin:]
        self._leaves = tf.nest.flatten(self._returned, expand_composites=True)
        self._places = [number for number, leaf in enumerate(self._leaves) if isinstance(leaf, tf.Tensor)]
        self.losses = [tf.convert_to_tensor(loss) for loss in scope.losses]
        self.tensors = [*(self._leaves[place] for place in self._places), *self.losses]

    def with_tensors(self, tensors: Sequence[tf.Tensor]) -> Any:
        """Return what was returned, with other tensors in the place of its own."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            set_mask(tensor, mask_of(leaves[place]))
            leaves[place] = tensor
        return tf.nest.pack_sequence_as(self._returned, leaves, expand_composites=True)


def _has_gradient(tensor: tf.Tensor) -> bool:
    return bool(tensor.dtype.is_floating or tensor.dtype.is_complex)


def _is_zero(gradient: Any) -> bool:
    """Whether it is TensorFlow's zeros for a tensor that nothing uses: what it depends on has no gradient either."""
    if not isinstance(gradient, tf.Tensor) or gradient.op.type not in ("Const", "Fill", "ZerosLike"):
        return False
    value = gradient if gradient.op.type == "Const" else gradient.op.inputs[-1]
    known = tf.get_static_value(value)
    return gradient.op.type == "ZerosLike" or (known is not None and not known.any())
