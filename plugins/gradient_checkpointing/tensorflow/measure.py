"""Measure what each layer keeps for its backward pass: in the graph of a step, which need not run for that."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from ....adapters.errors import OptionError
from ..choice import LayerCost
from .context import Recording, in_context_of, training_now
from .recompute import CheckpointedLayer

_ALIASES = {
    "CheckNumerics",
    "ExpandDims",
    "Identity",
    "IdentityN",
    "PreventGradient",
    "Reshape",
    "Squeeze",
    "StopGradient",
}
"""Operations that return their input's memory."""

_NO_ACTIVATIONS = {"Const", "ReadVariableOp", "VarHandleOp"}
"""Operations that return what is kept anyway."""

_LOOK_AT_SHAPES = {"OnesLike", "Rank", "Shape", "ShapeN", "Size", "ZerosLike"}
"""Operations of a backward pass that read no values."""


@dataclass(frozen=True)
class Measured:
    """The arguments of `choose` that are measured."""

    costs: list[LayerCost]
    other_bytes: int
    tail_bytes: int


@dataclass
class _Called:
    """One call of a layer: the range of its operations, and the tensors that it got and returned."""

    layer: CheckpointedLayer
    call: Callable[..., Any]
    arguments: Any
    training: bool | None
    begin: int
    end: int
    returned: Any

    @property
    def inputs(self) -> list[tf.Tensor]:
        return _tensors(self.arguments)


def measure(
    model: Any, layers: Sequence[CheckpointedLayer], batch: Any, loss_fn: Callable[[Any, Any], Any], timed: bool
) -> Measured:
    """Measure layers in one training step of one process, which is traced, not run; nothing changes.

    Args:
        batch: a micro-batch of tensors, or of their specs, without unknown dimensions.
        timed: whether to run each layer's forward pass, for its time; of layers alike, the first one's.

    Raises:
        OptionError: a tensor's size is not known before the step runs.
    """
    specs = tf.nest.map_structure(lambda leaf: leaf if leaf is None else tf.TensorSpec(leaf.shape, leaf.dtype), batch)
    variables = [variable.value for variable in model.trainable_variables]
    calls: list[_Called] = []
    kept: dict[str, tf.Tensor] = {}
    places: dict[str, int] = {}

    def trace(micro_batch: Any) -> None:
        graph = tf.compat.v1.get_default_graph()
        with Recording([]), tf.GradientTape(watch_accessed_variables=False) as tape, _observed(layers, graph, calls):
            tape.watch(variables)
            loss = loss_fn(model, micro_batch)
        forward = graph.get_operations()
        places.update((operation.name, number) for number, operation in enumerate(forward))
        tape.gradient(loss, variables)
        kept.update(_kept(places, graph.get_operations()[len(forward) :], _tensors(micro_batch)))

    tf.function(trace, autograph=False).get_concrete_function(specs)
    return _by_layer(calls, kept, places, _seconds(calls) if timed else {})


@contextmanager
def _observed(layers: Sequence[CheckpointedLayer], graph: tf.Graph, calls: list[_Called]) -> Iterator[None]:
    """Add the layers' calls inside the block to `calls`; they are not checkpointed there."""

    def observer(layer: CheckpointedLayer) -> Callable[[Callable[..., Any], Any], Any]:
        def observe(call: Callable[..., Any], arguments: Any) -> Any:
            if tf.compat.v1.get_default_graph() is not graph:
                raise OptionError(
                    f"the layer {layer.name!r} is called in a loop or branch of TensorFlow's, where its memory cannot "
                    "be measured before the step runs: leave budget out, or the layer out of layers"
                )
            training, begin = training_now(), len(graph.get_operations())
            args, options = arguments
            returned = call(*args, **options)
            end = len(graph.get_operations())
            calls.append(_Called(layer, call, arguments, training, begin, end, returned))
            return returned

        return observe

    with ExitStack() as stack:
        for layer in layers:
            layer.observer = observer(layer)
            stack.callback(setattr, layer, "observer", None)
        yield


def _kept(made: Container[str], backward: Sequence[tf.Operation], batch: Sequence[tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return the tensors that operations of the backward pass take from those `made` in the forward pass, by name."""
    given = {tensor.name for tensor in batch}
    kept = {}
    for operation in backward:
        if operation.type in _LOOK_AT_SHAPES:
            continue
        for tensor in operation.inputs:
            if tensor.op.name in made:
                owner = _memory_of(tensor)
                if _is_activation(owner) and (owner.op.type != "Placeholder" or owner.name in given):
                    kept[owner.name] = owner
    return kept


def _by_layer(
    calls: Sequence[_Called], kept: dict[str, tf.Tensor], places: dict[str, int], seconds: dict[int, float]
) -> Measured:
    """Divide what is kept among the layers: a layer's inputs are its own, and what it returned is another's."""
    owners: dict[str, _Called] = {}
    inputs: dict[int, int] = {}
    for call in calls:
        own = {tensor.name: tensor for tensor in map(_memory_of, call.inputs) if _is_activation(tensor)}
        new = {name: tensor for name, tensor in own.items() if name not in owners}
        owners.update(dict.fromkeys(new, call))
        inputs[id(call)] = sum(map(_bytes_of, new.values()))
    returned = {_memory_of(tensor).name for call in calls for tensor in _tensors(call.returned)}
    activations = dict.fromkeys(inputs, 0)
    other = tail = 0
    for name, tensor in kept.items():
        place = places[tensor.op.name]
        maker = next((call for call in calls if call.begin <= place < call.end), None)
        owner = owners.get(name) or (None if name in returned else maker)
        size = _bytes_of(tensor)
        if owner is not None:
            activations[id(owner)] += size
        else:
            other += size
            tail += size if place >= calls[-1].begin else 0
    costs: dict[str, LayerCost] = {}
    for call in calls:
        before = costs.get(call.layer.name, LayerCost(call.layer.name, 0, 0, 0.0))
        costs[call.layer.name] = LayerCost(
            call.layer.name,
            before.activation_bytes + activations[id(call)],
            before.input_bytes + inputs[id(call)],
            before.seconds + seconds.get(id(call), 0.0),
        )
    return Measured(list(costs.values()), other, tail)


def _seconds(calls: Sequence[_Called]) -> dict[int, float]:
    """Return the seconds of each call's forward pass."""
    known: dict[Any, float] = {}
    found = {}
    for call in calls:
        specs = tuple(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in call.inputs)
        weights = tuple((tuple(weight.shape), weight.dtype) for weight in call.layer.layer.weights)
        alike = (type(call.layer.layer), weights, specs)
        if alike not in known:
            known[alike] = _time(call, specs)
        found[id(call)] = known[alike]
    return found


def _time(called: _Called, specs: Sequence[tf.TensorSpec]) -> float:
    args = [_example(spec) for spec in specs]
    leaves = tf.nest.flatten(called.arguments, expand_composites=True)
    places = [number for number, leaf in enumerate(leaves) if isinstance(leaf, tf.Tensor)]

    @tf.function(autograph=False)  # type: ignore[untyped-decorator]
    def forward(*tensors: tf.Tensor) -> list[tf.Tensor]:
        own = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            own[place] = tensor
        args, options = tf.nest.pack_sequence_as(called.arguments, own, expand_composites=True)
        with Recording([]):
            layer = called.layer.layer
            return _tensors(in_context_of(layer, called.training, lambda: called.call(*args, **options)))

    times = []
    for _ in range(4):
        begin = time.perf_counter()
        for tensor in forward(*args):
            tensor.numpy()
        times.append(time.perf_counter() - begin)
    return min(times[1:])


def _example(spec: tf.TensorSpec) -> tf.Tensor:
    if spec.dtype.is_floating:
        return tf.cast(tf.random.stateless_normal(spec.shape, (1, 2)), spec.dtype)
    return tf.zeros(spec.shape, spec.dtype)


def _memory_of(tensor: tf.Tensor) -> tf.Tensor:
    """Return the tensor whose memory this one has."""
    while tensor.op.type in _ALIASES:
        tensor = tensor.op.inputs[tensor.value_index if tensor.op.type == "IdentityN" else 0]
    return tensor


def _is_activation(tensor: tf.Tensor) -> bool:
    return tensor.op.type not in _NO_ACTIVATIONS and tensor.dtype != tf.resource


def _bytes_of(tensor: tf.Tensor) -> int:
    if not tensor.shape.is_fully_defined() or tensor.dtype == tf.variant:
        raise OptionError(
            f"the size of {tensor.op.type} ({tensor.name}), which is kept for the backward pass, is not known before "
            "the step runs, and a budget needs it: give all inputs fixed shapes, or leave budget out"
        )
    return int(math.prod(tensor.shape.as_list()) * tensor.dtype.size)


def _tensors(values: Any) -> list[tf.Tensor]:
    return [leaf for leaf in tf.nest.flatten(values, expand_composites=True) if isinstance(leaf, tf.Tensor)]
