"""Measure in one step what each layer saves, keeps and costs, while every candidate is checkpointed."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field, replace

import torch

from ..choice import LayerCost, Recomputed
from .saved import Storages, activations, storages


@dataclass(frozen=True)
class Measured:
    """What one micro-batch took; see `choice.choose`.

    size: the bytes of the first candidate's inputs, to compare micro-batches by.
    """

    costs: tuple[LayerCost, ...]
    other_bytes: int
    tail_bytes: int
    size: int

    @property
    def without_bytes(self) -> int:
        """The bytes without checkpointing."""
        return self.other_bytes + sum(cost.activation_bytes for cost in self.costs)

    def scaled_others(self, before: Measured) -> Measured:
        """Return this with what `before` saved outside of the candidates, in proportion to the size."""
        share = self.size / max(before.size, 1)
        return Measured(self.costs, int(before.other_bytes * share), int(before.tail_bytes * share), self.size)


class LayerRecord:
    """One forward pass of a layer, and its recomputation.

    inputs, outputs: the memory of its arguments and results, without parameters.
    others: what was saved outside of candidates before.
    held: the results, until they are recomputed, so that no other memory gets their addresses.
    saved: what it saves for its backward pass.
    kept: the results of operators that may be kept.
    outputs_again: the outputs' addresses in the recomputation, by those in the forward pass.
    seconds: the recomputation.
    operator_seconds: of these, the operators whose results may be kept.
    """

    def __init__(
        self, name: str, layer: torch.nn.Module, tensors: Iterable[torch.Tensor], began: Callable[[], None]
    ) -> None:
        self.name = name
        self._layer = layer
        self._began = began
        self.inputs = activations(tensors, layer)
        self.outputs: list[Storages] = []
        self.others: Storages = {}
        self.held: list[torch.Tensor] = []
        self.saved: Storages = {}
        self.kept: Storages = {}
        self.outputs_again: dict[int, int] = {}
        self.seconds = 0.0
        self.operator_seconds = 0.0
        self._looking = 0.0  # seconds spent in here
        self._since = 0.0  # when the operator that runs began

    def see(self, tensor: torch.Tensor) -> None:
        """Note a tensor that the recomputation saves."""
        began = time.perf_counter()
        self.saved |= activations([tensor], self._layer)
        self._since = time.perf_counter()
        self._looking += self._since - began

    def operator(self, kept: list[torch.Tensor]) -> None:
        """Note that an operator was computed, and those of its results that may be kept."""
        ended = _now()
        if kept:
            self.operator_seconds += ended - self._since
            self.kept |= storages(kept)
            self.held += kept
        self._since = time.perf_counter()
        self._looking += self._since - ended

    def begin(self) -> None:
        """Begin to recompute."""
        self._began()
        self._start = self._since = _now()

    def end(self, outputs: Iterable[torch.Tensor]) -> None:
        """End the recomputation."""
        self.seconds = _now() - self._start - self._looking
        self.held = []
        for first, again in zip(self.outputs, outputs, strict=False):
            self.outputs_again.update(zip(first, storages([again]), strict=False))


@dataclass
class _MicroBatch:
    """The records of one micro-batch, in forward order, and the memory saved outside of candidates."""

    records: list[LayerRecord] = field(default_factory=list)
    others: Storages = field(default_factory=dict)
    tail: Storages = field(default_factory=dict)  # of those, what came after the last candidate
    in_backward: bool = False

    def begin_backward(self) -> None:
        self.in_backward = True

    def measured(self, offload: bool, operators: bool) -> Measured:
        """Attribute each memory block to one layer, or to the others."""
        counted: Storages = {}
        kept_by_layers = {address for record in self.records for address in record.inputs if address in record.saved}
        costs: dict[str, LayerCost] = {}
        for record in self.records:
            alive = counted | record.others  # while it is recomputed; other addresses may be in use again by then
            inputs = _without(record.inputs, alive)
            saved = _without(record.saved, alive)
            kept = _without(record.kept, alive | inputs)
            elsewhere = {
                again
                for address, again in record.outputs_again.items()
                if address in self.others or (address in kept_by_layers and address not in record.inputs)
            }
            input_bytes = 0 if offload else sum(inputs.values())
            cost = LayerCost(
                record.name,
                activation_bytes=sum(_without(saved, elsewhere).values()),
                input_bytes=input_bytes,
                seconds=record.seconds,
                recomputed_bytes=sum((saved | inputs).values()),
            )
            if operators:
                left = record.seconds - record.operator_seconds
                kept_bytes = input_bytes + sum(_without(kept, elsewhere).values())
                way = Recomputed(kept_bytes, left, sum((saved | inputs | kept).values()))
                cost = replace(cost, operators=way)
            costs[record.name] = _sum(costs[record.name], cost) if record.name in costs else cost
            counted |= {address: size for address, size in inputs.items() if address in saved}
        saves = tuple(cost if cost.activation_bytes else _nothing(cost) for cost in costs.values())
        size = sum(self.records[0].inputs.values())
        return Measured(saves, sum(self.others.values()), sum(self.tail.values()), size)


class Profile:
    """One step, micro-batch by micro-batch; what it measured is the largest of them.

    Args:
        offload: whether inputs are kept in host memory.
        operators: whether layers may keep the results of operators.
    """

    def __init__(self, model: torch.nn.Module, offload: bool, operators: bool) -> None:
        self._model = model
        self._offload = offload
        self._operators = operators
        self._current = _MicroBatch()
        self._largest: Measured | None = None
        self._inside = False
        self._hooks: torch.autograd.graph.saved_tensors_hooks | None = None

    def begin(self, name: str, layer: torch.nn.Module, tensors: Iterable[torch.Tensor]) -> LayerRecord:
        """Begin a layer's forward pass."""
        self._next_if_over()
        self._inside = True
        record = LayerRecord(name, layer, tensors, self._current.begin_backward)
        record.others = dict(self._current.others)
        self._current.records.append(record)
        self._current.tail.clear()
        return record

    def end(self, record: LayerRecord, outputs: Iterable[torch.Tensor]) -> None:
        """End it."""
        self._inside = False
        record.held = [tensor.detach() for tensor in outputs]
        record.outputs = [storages([tensor]) for tensor in record.held]

    def open(self) -> None:
        """Note from now on what is saved outside of candidates."""
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self._hooks.__enter__()

    def close(self) -> Measured | None:
        """Stop, and return what was measured, if any candidate ran."""
        if self._hooks is not None:
            self._hooks.__exit__()
            self._hooks = None
        self._finish()
        return self._largest

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        if not self._inside:
            self._next_if_over()
            found = activations([tensor], self._model)
            new = _without(found, self._current.others)
            self._current.others |= new
            self._current.tail |= new
        return tensor.detach()

    def _next_if_over(self) -> None:
        if self._current.in_backward:
            self._finish()

    def _finish(self) -> None:
        if self._current.records:
            measured = self._current.measured(self._offload, self._operators)
            if self._largest is None or measured.without_bytes > self._largest.without_bytes:
                self._largest = measured
        self._current = _MicroBatch()


def size_of(tensors: Iterable[torch.Tensor], layer: torch.nn.Module) -> int:
    """Return the bytes of a layer's inputs, as `Measured.size` is for the first candidate."""
    return sum(activations(tensors, layer).values())


def largest_of(all_measured: Iterable[Measured]) -> Measured:
    """Return for each layer the most that any worker measured; all have the same layers, if not all call each."""
    found: dict[str, LayerCost] = {}
    everyone = list(all_measured)
    for measured in everyone:
        for cost in measured.costs:
            found[cost.name] = _larger(found[cost.name], cost) if cost.name in found else cost
    return Measured(
        tuple(found.values()),
        max(measured.other_bytes for measured in everyone),
        min(measured.tail_bytes for measured in everyone),
        max(measured.size for measured in everyone),
    )


def _larger(one: LayerCost, other: LayerCost) -> LayerCost:
    return _both(one, other, max, _larger_way)


def _larger_way(one: Recomputed, other: Recomputed) -> Recomputed:
    return Recomputed(
        max(one.kept_bytes, other.kept_bytes),
        max(one.seconds, other.seconds),
        max(one.backward_bytes, other.backward_bytes),
    )


def _sum(one: LayerCost, other: LayerCost) -> LayerCost:
    """Add two passes of a layer; each is recomputed for itself."""
    return _both(one, other, int.__add__, _sum_of_ways)


def _sum_of_ways(one: Recomputed, other: Recomputed) -> Recomputed:
    return Recomputed(
        one.kept_bytes + other.kept_bytes,
        one.seconds + other.seconds,
        one.kept_bytes + other.backward_bytes,
    )


def _both(
    one: LayerCost,
    other: LayerCost,
    activations: Callable[[int, int], int],
    way: Callable[[Recomputed, Recomputed], Recomputed],
) -> LayerCost:
    """Return the cost of two passes of a layer, of which the two functions add up each."""
    whole, operators = way(one.whole, other.whole), one.operators or other.operators
    if one.operators is not None and other.operators is not None:
        operators = way(one.operators, other.operators)
    total = activations(one.activation_bytes, other.activation_bytes)
    return LayerCost(one.name, total, whole.kept_bytes, whole.seconds, whole.backward_bytes, operators)


def _nothing(cost: LayerCost) -> LayerCost:
    """A layer that saves nothing keeps nothing, checkpointed or not."""
    return LayerCost(cost.name, 0, 0, cost.seconds, 0)


def _without(found: Storages, others: Container[int]) -> Storages:
    return {address: size for address, size in found.items() if address not in others}


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
