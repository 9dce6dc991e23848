"""A module on DeepSpeed's engine: what a training step needs of it, and what a checkpoint does."""

from __future__ import annotations

import zlib
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from ...errors import DataError
from ...structure import map_structure
from ..engine import Engine, Shard, Slots
from ..graph import leaves_of
from .fragments import Fragment, StandInOptimizer


class _Use:
    """Which trained parameters a loss does not depend on, compared with the other workers' while this one goes on.

    device: where to compare; `None` does not.
    """

    def __init__(self, unused: list[bool], device: torch.device | None) -> None:
        self.unused = unused
        self._work: Any = None
        if device is not None:
            digest = zlib.crc32(bytes(unused))
            self._extremes = torch.tensor([digest, -digest], device=device)
            self._work = dist.all_reduce(self._extremes, dist.ReduceOp.MAX, async_op=True)

    def is_alike(self) -> bool:
        """Whether it is the same on every worker."""
        if self._work is None:
            return True
        self._work.wait()
        largest, smallest = self._extremes.tolist()
        return bool(largest == -smallest)


class ZeroEngine(Engine):
    """Base of the stages. DeepSpeed reduces, clips, has the optimizer called and gathers; see `fragments`.

    Stages 2 and 3 reduce gradients while backward runs, in buckets that are filled as gradients come. Workers that use
    different parameters would add up gradients of different ones, so they compare beforehand what they use; where it
    differs, they hold this micro-batch's gradients whole, and reduce them afterwards in one order.
    """

    def __init__(
        self, deepspeed_engine: Any, optimizer: torch.optim.Optimizer, stand_in: StandInOptimizer, compare: bool
    ) -> None:
        super().__init__(deepspeed_engine.module, optimizer)
        self._engine = deepspeed_engine
        self._zero = deepspeed_engine.optimizer
        self._compare = compare and dist.get_world_size() > 1
        self._trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self._partitioned = set(self._trained)
        self._dtype = self._trained[0].dtype
        self._used: set[torch.Tensor] = set()
        self._first_micro_batch = True
        self._use: _Use | None = None
        self._fragments: dict[torch.nn.Parameter, Fragment] = {}
        self._hooks: list[Any] = []
        for parameter in self._trained:
            hook = parameter.register_post_accumulate_grad_hook(self._used.add)  # type: ignore[no-untyped-call]
            self._hooks.append(hook)
            fragment = self._find_fragment(parameter)
            if fragment is not None:
                self._fragments[parameter] = fragment
        stand_in.serve(self._fragments, self.groups, self._used.__contains__)

    @property
    def deepspeed_engine(self) -> Any:
        """DeepSpeed's own engine."""
        return self._engine

    # A step.

    def forward(self, *inputs: Any) -> Any:
        if self._dtype != torch.float32:
            inputs = tuple(map_structure(self._cast, value) for value in inputs)
        output = self._engine(*inputs)
        # Now, so that it is under way before other reductions of this step are.
        self._use = self._look_at_use(output) if torch.is_grad_enabled() else None
        return output

    def backward(self, loss: torch.Tensor) -> None:
        use, self._use = self._use or self._look_at_use(loss), None
        if use is None or use.is_alike():
            self._engine.backward(loss, scale_wrt_gas=False)
        else:
            self._backward_whole(loss)
        if self._first_micro_batch:
            for parameter in self._trained if use is not None and any(use.unused) else ():
                if parameter not in self._used:
                    self._forget_gradient(parameter)
        self._first_micro_batch = False

    def gradients(self) -> Iterator[torch.Tensor]:
        for gradients in self._zero.averaged_gradients.values():
            yield from (gradient for gradient in gradients or () if gradient is not None)

    def clip_grad_norm(self, max_norm: float) -> None:
        self._zero.clip_grad = max_norm

    def update(self) -> None:
        self._engine.step()
        if self._zero.overflow and self._dtype != torch.float16:
            raise DataError(
                "the gradient is not finite, and DeepSpeed skipped the update: look for NaN in the data, a division by "
                "zero in loss_fn, or too high a learning rate"
            )

    def zero_grad(self) -> None:
        for parameter in self.module.parameters():
            parameter.grad = None
        self._used.clear()
        self._first_micro_batch = True

    def release(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._engine.destroy()

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def _look_at_use(self, output: Any) -> _Use | None:
        """Find which parameters `output` does not depend on, and start to compare; `None` where it depends on none."""
        if not isinstance(output, torch.Tensor) or not output.requires_grad:
            return None
        leaves = leaves_of(output)
        unused = [parameter not in leaves for parameter in self._trained]
        return _Use(unused, self._engine.device if self._compare else None)

    def _backward_whole(self, loss: torch.Tensor) -> None:
        """Run backward with whole gradients kept here, then reduce them; as `DeepSpeedEngine.coalesce_grad_reduction`.

        That context manager refuses an accumulation that its caller counts, but nothing in it depends on who counts.
        """
        self._zero._coalesce_grad_reduction = self._engine.inside_no_sync_ctxt = True
        try:
            self._engine.backward(loss, scale_wrt_gas=False)
        finally:
            self._zero._coalesce_grad_reduction = self._engine.inside_no_sync_ctxt = False
        present = [parameter.grad is not None for parameter in self._trained]
        counts = torch.tensor(present, dtype=torch.int64, device=self._engine.device)
        dist.all_reduce(counts)
        for parameter, count in zip(self._trained, counts.tolist(), strict=True):
            if count > 0:
                self._used.add(parameter)
                if count < dist.get_world_size():
                    self._fill_gradient(parameter)
        self._flush()

    # State.

    def shard(self, parameter: torch.nn.Parameter) -> Shard:
        fragment = self._fragments.get(parameter)
        if fragment is not None:
            slots = self.optimizer.state.get(fragment.held, {})
            return Shard(fragment.start, fragment.held.detach(), dict(slots), replicated=False)
        if parameter not in self._partitioned:
            return self._frozen_shard(parameter)
        return Shard(0, torch.empty(0), {}, replicated=False)

    def load_weight(self, parameter: torch.nn.Parameter, flat: torch.Tensor) -> None:
        self.shard(parameter).weight.copy_(flat)

    def _holds(self, parameter: torch.nn.Parameter) -> bool:
        return parameter in self._fragments

    def _shaped(self, parameter: torch.nn.Parameter, slots: Slots) -> Slots:
        return slots

    # What the stages do otherwise.

    @abstractmethod
    def _find_fragment(self, parameter: torch.nn.Parameter) -> Fragment | None:
        """Return this worker's fragment of a trained parameter; `None` where it has no part of it."""

    @abstractmethod
    def _frozen_shard(self, parameter: torch.nn.Parameter) -> Shard:
        """Return what this worker holds of a parameter that the optimizer does not update."""

    @abstractmethod
    def _fill_gradient(self, parameter: torch.nn.Parameter) -> None:
        """Give a parameter zeros for a gradient where it has none; all workers call it."""

    @abstractmethod
    def _flush(self) -> None:
        """Reduce the gradients that `_backward_whole` held."""

    def settle(self) -> None:
        """Wait for reductions that nobody needed to wait for."""
        if self._use is not None:
            self._use.is_alike()

    def _forget_gradient(self, parameter: torch.nn.Parameter) -> None:
        """Clear what the last step left where this step's reduced gradient will be looked for."""


class Stage12Engine(ZeroEngine):
    """Stages 1 and 2: every worker computes with whole parameters, and updates its partition of them."""

    def finish_loading(self) -> None:
        self._zero.update_lp_params()

    def _find_fragment(self, parameter: torch.nn.Parameter) -> Fragment | None:
        mapping = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return None
        address = mapping.hp_fragment_address
        partition = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return Fragment.cut(mapping.lp_fragment_address.start, partition, address.start, address.numel)

    def _frozen_shard(self, parameter: torch.nn.Parameter) -> Shard:
        return super(ZeroEngine, self).shard(parameter)

    def _fill_gradient(self, parameter: torch.nn.Parameter) -> None:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)

    def _flush(self) -> None:
        self._engine._flush_coalesced_reduction_zero12(self._zero)


class Stage1Engine(Stage12Engine):
    """Gradients stay whole and at home until the update, so workers need not compare what they use beforehand."""

    _unread_counts: Any = None

    def _look_at_use(self, output: Any) -> _Use | None:
        return None

    def reduce_gradients(self) -> None:
        if not self._compare:
            return
        self.settle()
        present = [parameter in self._used for parameter in self._trained]
        counts = torch.tensor(present, dtype=torch.float32, device=self._engine.device)
        work = dist.all_reduce(counts, async_op=True)
        if all(present):
            self._unread_counts = work, counts  # only workers that lack a gradient need to know
            return
        work.wait()
        for parameter, count in zip(self._trained, counts.tolist(), strict=True):
            self._fill_gradient(parameter)
            if count > 0:
                self._used.add(parameter)

    def settle(self) -> None:
        if self._unread_counts is not None:
            self._unread_counts[0].wait()
            self._unread_counts = None


class Stage3Engine(ZeroEngine):
    """Parameters are partitioned too, each by itself: rank r holds its elements from r * ceil(numel / N)."""

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        shape: torch.Size = parameter.ds_shape  # type: ignore[attr-defined]
        return shape

    def whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        with _gathered(parameter):
            return parameter.detach().clone()

    def finish_loading(self) -> None:
        self._zero._partition_all_parameters()
        for number in range(len(self._zero.fp16_groups)):
            self._zero._reassign_or_swap_out_partitioned_parameters(number)
        persistent = self._zero.persistent_parameters
        if persistent:
            persistent[0].all_gather(persistent)

    def _find_fragment(self, parameter: torch.nn.Parameter) -> Fragment | None:
        group, offset, _ = self._zero.grad_position[self._zero.get_param_id(parameter)]
        start, numel = _range(parameter)
        if numel == 0:
            return None
        return Fragment.cut(start, self._zero.fp32_partitioned_groups_flat[group], offset, numel)

    def _frozen_shard(self, parameter: torch.nn.Parameter) -> Shard:
        start, numel = _range(parameter)
        held: torch.Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
        return Shard(start, held.detach().reshape(-1).narrow(0, 0, numel), {}, replicated=False)

    def _fill_gradient(self, parameter: torch.nn.Parameter) -> None:
        with _gathered(parameter):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def _flush(self) -> None:
        self._engine._flush_coalesced_reduction_zero3(self._zero)

    def _forget_gradient(self, parameter: torch.nn.Parameter) -> None:
        # DeepSpeed only writes there, and would take the last step's gradient for this one's.
        partitions = self._zero._DeepSpeedZeroOptimizer_Stage3__param_id_to_grad_partition
        partitions[self._zero.get_param_id(parameter)].zero_()


def _range(parameter: torch.nn.Parameter) -> tuple[int, int]:
    """Return first element and number of elements of this worker's part, without the padding at its end."""
    taken_apart: Any = parameter
    size, numel = taken_apart.partition_numel(), taken_apart.ds_numel
    start = min(size * dist.get_rank(), numel)
    return start, min(size, numel - start)


def _gathered(parameter: torch.nn.Parameter) -> Any:
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter])


ENGINES: dict[int, type[ZeroEngine]] = {1: Stage1Engine, 2: Stage12Engine, 3: Stage3Engine}
