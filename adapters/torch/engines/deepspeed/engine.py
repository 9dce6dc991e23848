"""A module on DeepSpeed's engine: the primitives for training steps and checkpoints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.distributed as dist

from ....checkpoint.manifest import LossScale
from ....errors import DataError, OptionError
from ....structure import map_structure
from ...compat import forget_hooks, show_hooks
from ...engine import Engine, Shard, Slots
from ...forward_passes import ForwardPasses
from ...graph import leaves_of
from ...no_gradient import NoGradient
from ...parameter_types import stop_looking
from ...pending_reductions import GradientCounts
from ...waiting import Note
from .compat import EngineView, ZeroView, dynamic_loss_scaler
from .fragments import DelegatingOptimizer, Fragment
from .loss_scale import read_loss_scale, set_loss_scale
from .use import Comparison, Gate
from .waiting import Collectives, find_collectives


class ZeroEngine(Engine, ABC):
    """Base of the stages. DeepSpeed reduces, clips, calls the optimizer and gathers; see `fragments`.

    Stages 2 and 3 reduce gradients while backward runs, in buckets filled as gradients come. Workers that use different
    parameters would sum the gradients of different parameters, so they compare what they use. If it differs, they keep
    this micro-batch's gradients whole, and reduce them afterwards in one order. A parameter that is used may still have
    no gradient; so workers count those that have one before the update.

    Args:
        deepspeed_engine: what `deepspeed.initialize` returned.
        optimizer: the user's optimizer.
        delegating: the optimizer that DeepSpeed calls.
        counts: counts the workers that have a gradient; `None` if all use the same parameters.
        passes: reports if only some workers run the model, where all must.

    looking: hooks for sparse gradients; see `refuse_sparse_gradients`.
    """

    _zero_view: ClassVar[type[ZeroView]]

    def __init__(
        self,
        deepspeed_engine: Any,
        optimizer: torch.optim.Optimizer,
        delegating: DelegatingOptimizer,
        counts: GradientCounts | None,
        passes: ForwardPasses,
    ) -> None:
        super().__init__(deepspeed_engine.module, optimizer)
        self.passes = passes
        self.looking: list[list[Any]] = []
        self._engine = deepspeed_engine
        self._engine_view = EngineView(deepspeed_engine)
        self._zero = self._zero_view(deepspeed_engine.optimizer)
        self._counts = counts if dist.get_world_size() > 1 else None
        self._all = list(self.module.parameters())
        self._trained = [parameter for parameter in self.parameters if parameter.requires_grad]
        self._partitioned = set(self._trained)
        self._dtype = self._trained[0].dtype
        self._no_gradient = NoGradient(self._trained)
        self._used = self._no_gradient.given  # by this worker; by any, once gradients are reduced
        self._first_micro_batch = True
        self._comparison: Comparison | None = None
        numels: dict[torch.Tensor, int] = {parameter: self.shape(parameter).numel() for parameter in self._trained}
        self._gate = Gate(self._engine_view, self._zero, numels, self._pass_on, self.waiting)
        self._fragments: dict[torch.nn.Parameter, Fragment] = {}
        self._hooks: list[Any] = []
        self._destroyed = False
        self._collectives: Collectives | None = None
        for parameter in self._trained:
            if self._counts is not None:  # after DeepSpeed's own hook
                hook = parameter.register_post_accumulate_grad_hook(self._gate.hold)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)
            fragment = self._find_fragment(parameter)
            if fragment is not None:
                self._fragments[parameter] = fragment
            show_hooks(parameter)
        delegating.serve(self._fragments, self.groups, self._used.__contains__)

    @property
    def deepspeed_engine(self) -> Any:
        """DeepSpeed's own engine."""
        return self._engine

    # A step.

    def time_waiting(self, note: Note) -> None:
        super().time_waiting(note)
        self._collectives = find_collectives()

    def forward(self, *inputs: Any) -> Any:
        if self._collectives is not None:
            self._collectives.waiting = self.waiting  # until the update
        if self._dtype != torch.float32:
            inputs = tuple(map_structure(self._cast, value) for value in inputs)
        with self.passes:
            output = self._engine(*inputs)
        # Now, so that it starts before other reductions of this step.
        self.settle()
        if torch.is_grad_enabled():
            self._compare_use(output)
        return output

    def backward(self, loss: torch.Tensor) -> None:
        if self._comparison is None:  # the loss was computed outside of forward
            self._compare_use(loss)
        comparison, self._comparison = self._comparison, None
        with self.passes:
            if comparison is None:
                self._engine.backward(loss, scale_wrt_gas=False)
            elif not self._gate.backward(loss, comparison):
                self._reduce_whole()
        if self._first_micro_batch:
            reduced = self._used | self._no_gradient.zeros
            for parameter in self._trained if len(reduced) < len(self._trained) else ():
                if parameter not in reduced:
                    self._forget_gradient(parameter)
        self._first_micro_batch = False

    def reduce_gradients(self) -> None:
        if self._counts is None:
            return
        present = [parameter in self._used for parameter in self._trained]
        self._counts.start(present)
        if not all(present):
            for parameter, count in zip(self._trained, self._counts.read(), strict=True):
                if count > 0:
                    self._used.add(parameter)

    def gradients(self) -> Iterator[torch.Tensor]:
        for gradients in self._zero.averaged_gradients.values():
            yield from (gradient for gradient in gradients or () if gradient is not None)

    def clip_grad_norm(self, max_norm: float) -> None:
        self._zero.clip_norm = max_norm

    def measure_grad_norm(self) -> None:
        pass  # DeepSpeed does it in each update

    def grad_norm(self) -> torch.Tensor:
        return torch.as_tensor(self._engine_view.global_grad_norm())

    def update(self) -> None:
        with self.passes:
            self._engine.step()
        if self._collectives is not None:
            self._collectives.waiting = None
        self.skipped = bool(self._zero.overflow)
        if self.skipped and self._dtype != torch.float16:
            raise DataError(
                "the gradient is not finite, and DeepSpeed skipped the update: look for NaN in the data, a division by "
                "zero in loss_fn, or too high a learning rate"
            )

    def update_groups(self) -> None:
        raise OptionError(
            "parameters were given to the optimizer after prepare(), and DeepSpeed would not reduce their gradients: "
            "give them to it before, with a learning rate of 0 in their own group, or use strategy 'ddp'"
        )

    def zero_grad(self) -> None:
        for parameter in self._all:
            parameter.grad = None
        self._used.clear()
        self._no_gradient.zeros.clear()
        self._first_micro_batch = True

    def release(self) -> None:
        self.passes.release()
        stop_looking(self.looking)
        self._no_gradient.release()
        while self._hooks:
            self._hooks.pop().remove()
        for parameter in self._trained:
            forget_hooks(parameter)
        if not self._destroyed:
            self._destroyed = True
            self._engine_view.destroy()

    def _cast(self, value: Any) -> Any:
        return value.to(self._dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def _compare_use(self, output: Any) -> None:
        """Start to compare the parameters on which `output` depends, if it depends on any."""
        if self._counts is not None and isinstance(output, torch.Tensor) and output.requires_grad:
            leaves = leaves_of(output)
            unused = [parameter not in leaves for parameter in self._trained]
            self._comparison = Comparison(unused, self._engine.device)

    def _reduce_whole(self) -> None:
        """Reduce the gradients that were kept whole, in one order."""
        assert self._counts is not None
        zeros = self._no_gradient.zeros
        self._counts.start([parameter.grad is not None and parameter not in zeros for parameter in self._trained])
        with self.waiting():
            counts = self._counts.read()
        for parameter, count in zip(self._trained, counts, strict=True):
            if count == 0:
                parameter.grad = None
                zeros.discard(parameter)
                continue
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

    def loss_scale(self) -> LossScale | None:
        scaler = dynamic_loss_scaler(self._zero)
        return None if scaler is None else read_loss_scale(scaler)

    def load_loss_scale(self, loaded: LossScale) -> None:
        scaler = dynamic_loss_scaler(self._zero)
        if scaler is not None:
            set_loss_scale(scaler, loaded)

    def _holds(self, parameter: torch.nn.Parameter) -> bool:
        return parameter in self._fragments

    def _shaped(self, parameter: torch.nn.Parameter, slots: Slots) -> Slots:
        return slots

    # Hooks for the stages.

    @abstractmethod
    def _find_fragment(self, parameter: torch.nn.Parameter) -> Fragment | None:
        """Return this worker's fragment of a trained parameter; `None` if it has none."""

    @abstractmethod
    def _frozen_shard(self, parameter: torch.nn.Parameter) -> Shard:
        """Return this worker's shard of a parameter that the optimizer does not update."""

    @abstractmethod
    def _fill_gradient(self, parameter: torch.nn.Parameter) -> None:
        """Give a parameter without a gradient zeros; all workers call it."""

    @abstractmethod
    def _flush(self) -> None:
        """Reduce the gradients that were kept whole."""

    def settle(self) -> None:
        """Wait for reductions whose result was not needed."""
        if self._comparison is not None:
            self._comparison.is_same()
            self._comparison = None
        if self._counts is not None:
            self._counts.settle()

    @abstractmethod
    def _pass_on(self, parameter: torch.Tensor) -> None:
        """Give DeepSpeed a gradient that was held back."""

    def _forget_gradient(self, parameter: torch.nn.Parameter) -> None:
        """Clear the last step's gradient from the place of this step's reduced one."""
