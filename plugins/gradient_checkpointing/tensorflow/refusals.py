"""What makes a recomputation differ from the first computation: found in TensorFlow's operations, and refused."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import tensorflow as tf

from ....adapters.errors import OptionError
from ....adapters.tensorflow.compat import OperationView, called_graph

_HARMLESS = {
    "Assert",
    "CudnnRNN",  # Keras uses it without dropout only
    "CudnnRNNV2",
    "CudnnRNNV3",
    "LookupTableFindV2",
    "LookupTableSizeV2",
    "Print",
    "PrintV2",
    "ReadVariableOp",
    "ResourceGather",
    "ResourceGatherNd",
    "VarIsInitializedOp",
    "VariableShape",
}
"""Operations that TensorFlow calls stateful, but that only read, or that may run twice."""

_MADE_ONCE = {"Const", "Identity", "Placeholder", "ReadVariableOp"}
"""Operations that a second trace of the same code need not make again: it finds them, or has a value in their place."""


def refuse_layer(name: str, layer: Any) -> None:
    """Raise `OptionError` for a layer that Keras would not call as usual."""
    if getattr(layer, "quantization_mode", None) is not None:
        raise OptionError(
            f"the layer {name!r} is quantized ({layer.quantization_mode}), and Keras calls it in another way, which is "
            "not checkpointed: leave it out of layers"
        )


def refuse_rematerialized(layers: Iterable[tuple[str, Any]]) -> None:
    """Raise `OptionError` for a layer that Keras itself would compute again."""
    for name, layer in layers:
        if OperationView(layer).remat_mode is not None:
            raise OptionError(
                f"the layer {name!r} was made inside of keras.RematScope, which recomputes it with other random "
                "numbers: make it outside, and let GradientCheckpointing choose the layers"
            )


def refuse_unrepeatable(name: str, operations: Sequence[tf.Operation]) -> None:
    """Raise `OptionError` if a layer's operations would do something else, or act twice, when they run again."""
    for operation in _all_of(operations):
        if operation.op_def.is_stateful and operation.type not in _HARMLESS and not _functions(operation):
            raise OptionError(
                f"the layer {name!r} runs TensorFlow's {operation.type} ({operation.name}), which would return "
                "something else, or change something twice, when the layer is recomputed: draw random numbers with "
                "keras.random and a keras.random.SeedGenerator, keep state in add_weight, or leave the layer out of "
                "layers"
            )


def refuse_other(name: str, first: Sequence[tf.Operation], again: Sequence[tf.Operation]) -> None:
    """Raise `OptionError` if a layer computed something else when it was called again.

    So do layers that draw random numbers in Python, or count their calls.
    """
    known = {_value(operation) for operation in first if operation.type == "Const"}
    other = [operation for operation in again if operation.type == "Const" and _value(operation) not in known]
    if _types(first) != _types(again) or other:
        where = other[0].name if other else "its operations differ"
        raise OptionError(
            f"the layer {name!r} computes something else when it is called again with the same inputs ({where}): its "
            "call must not depend on Python's random numbers or on earlier calls. Change it, or leave it out of layers"
        )


def _types(operations: Sequence[tf.Operation]) -> list[str]:
    return [operation.type for operation in operations if operation.type not in _MADE_ONCE]


def _value(constant: tf.Operation) -> tuple[Any, ...]:
    value = constant.get_attr("value")
    return (value.dtype, value.SerializeToString())


def _all_of(operations: Iterable[tf.Operation]) -> Iterator[tf.Operation]:
    """Yield operations, and those of the functions that they call."""
    for operation in operations:
        yield operation
        for function in _functions(operation):
            yield from _all_of(called_graph(operation.graph, function).get_operations())


def _functions(operation: tf.Operation) -> list[str]:
    """Return the names of the functions that an operation calls."""
    kinds = {attribute.name: attribute.type for attribute in operation.op_def.attr}
    names = [operation.get_attr(name).name for name, kind in kinds.items() if kind == "func"]
    lists = [operation.get_attr(name) for name, kind in kinds.items() if kind == "list(func)"]
    return [*names, *(function.name for functions in lists for function in functions)]
