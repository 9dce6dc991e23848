"""The engines of ZeRO's stages: where each keeps this worker's shard of a parameter."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from ...engine import Shard
from .compat import (
    FragmentView,
    LinkedParameter,
    PartitionedParameter,
    Zero3View,
    Zero12View,
    offloaded_gradients,
)
from .engine import ZeroEngine
from .fragments import Fragment
from .library import forget_module


class Stage12Engine(ZeroEngine):
    """Stages 1 and 2: every worker computes with whole parameters, and updates its partition of them."""

    _zero_view = Zero12View
    _zero: Zero12View

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        groups = self._zero.groups
        self._group_of = {parameter: number for number, group in enumerate(groups) for parameter in group}

    def finish_loading(self) -> None:
        self._zero.update_parameters()

    def _find_fragment(self, parameter: torch.nn.Parameter) -> Fragment | None:
        fragment = LinkedParameter(parameter).fragment
        if fragment is None:
            return None
        found = FragmentView(fragment)
        # As a view it would own its base, the parameter, which owns it: Python cannot see that cycle, nor free it.
        found.of_parameter = found.of_parameter.data
        address = found.in_partition
        partition = self._zero.partitions[found.group]
        return Fragment.within(found.in_parameter.start, partition, address.start, address.numel)

    def _frozen_shard(self, parameter: torch.nn.Parameter) -> Shard:
        return super(ZeroEngine, self).shard(parameter)

    def _fill_gradient(self, parameter: torch.nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

    def _flush(self) -> None:
        self._engine_view.flush_zero_12(self._zero.real)

    def _pass_on(self, parameter: torch.Tensor) -> None:
        self._zero.collect_gradient(parameter, self._group_of[parameter])

    def _forget_gradient(self, parameter: torch.nn.Parameter) -> None:
        # With offload, DeepSpeed adds later micro-batches to it, even if it is the last step's.
        kept = offloaded_gradients(self._zero).get(self._zero.number_of(parameter))
        if kept is not None:
            kept.zero_()


class Stage1Engine(Stage12Engine):
    """Gradients stay whole and local until the update, so workers need not compare what they use beforehand."""

    def _compare_use(self, output: Any) -> None:
        pass

    def reduce_gradients(self) -> None:
        for parameter in self._trained if self._counts is not None else ():
            self._fill_gradient(parameter)
        super().reduce_gradients()


class Stage3Engine(ZeroEngine):
    """Parameters are partitioned too, each separately: rank r holds the elements from r * ceil(numel / N)."""

    _zero_view = Zero3View
    _zero: Zero3View

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        shape: torch.Size = PartitionedParameter(parameter).shape
        return shape

    def whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        with _gathered(parameter):
            return parameter.detach().clone()

    def finish_loading(self) -> None:
        self._zero.partition_parameters()
        for number in range(len(self._zero.groups)):
            self._zero.update_parameters(number)
        persistent = self._zero.persistent_parameters
        if persistent:
            PartitionedParameter(persistent[0]).gather(persistent)

    def _find_fragment(self, parameter: torch.nn.Parameter) -> Fragment | None:
        group, offset, _ = self._zero.gradient_positions[self._zero.number_of(parameter)]
        start, numel = _range(parameter)
        if numel == 0:
            return None
        return Fragment.within(start, self._zero.partitions[group], offset, numel)

    def _frozen_shard(self, parameter: torch.nn.Parameter) -> Shard:
        start, numel = _range(parameter)
        held: torch.Tensor = PartitionedParameter(parameter).held
        return Shard(start, held.detach().reshape(-1).narrow(0, 0, numel), {}, replicated=False)

    def _fill_gradient(self, parameter: torch.nn.Parameter) -> None:
        with _gathered(parameter):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def release(self) -> None:
        super().release()
        forget_module(self.module)

    def _flush(self) -> None:
        self._engine_view.flush_zero_3(self._zero.real)

    def _pass_on(self, parameter: torch.Tensor) -> None:
        self._zero.collect_gradient(parameter)

    def _forget_gradient(self, parameter: torch.nn.Parameter) -> None:
        # DeepSpeed writes there only if there is a gradient, and else would use the last step's.
        self._zero.gradient_partitions[self._zero.number_of(parameter)].zero_()


def _range(parameter: torch.nn.Parameter) -> tuple[int, int]:
    """Return the first element and the length of this worker's shard, without its padding."""
    partitioned = PartitionedParameter(parameter)
    size, numel = partitioned.partition_numel(), partitioned.numel
    start = min(size * dist.get_rank(), numel)
    return start, min(size, numel - start)


def _gathered(parameter: torch.nn.Parameter) -> Any:
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter])


ENGINES: dict[int, type[ZeroEngine]] = {1: Stage1Engine, 2: Stage12Engine, 3: Stage3Engine}
