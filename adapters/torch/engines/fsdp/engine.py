"""FSDP's training step: all workers reduce the same, and parameters without a gradient on any worker are unchanged."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ....checkpoint.manifest import LossScale
from ....structure import map_structure
from ...engine import Engine, Shard, Slots
from ...graph import leaves_below, leaves_of
from ...parameter_types import refuse_sparse_gradients, stop_looking
from ...pending_reductions import GradientCounts
from ...waiting import Note
from .older_torch import Resetting, Zeros
from .state import first_row, flat_slots, local_of, sharded_like
from .waiting import time_collectives

if TYPE_CHECKING:
    from ...process_group import ProcessGroupStrategy


class Root(torch.nn.Module):
    """FSDP's root module. It has no parameters, so the model keeps its own hooks, and also runs alone."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs) if inputs else None


class FSDPEngine(Engine):
    """One model, sharded.

    FSDP reduces a block's gradients when backward reaches it, with zeros for parameters without a gradient on this
    worker. Two problems are solved here. If a loss does not use a block's output on some workers, these would skip its
    reduction, and mix up one block's reduction with another's: so the loss is made to depend on all outputs, with no
    gradient. And zeros are not a missing gradient: workers count who has one, and drop gradients that no worker has.

    passes: reports if only some workers run the model.
    """

    module: Any  # Root, whose class FSDP extends

    def __init__(
        self,
        root: torch.nn.Module,
        model: torch.nn.Module,
        units: Sequence[torch.nn.Module],
        optimizer: torch.optim.Optimizer,
        strategy: ProcessGroupStrategy,
    ) -> None:
        super().__init__(root, optimizer)
        self._model = cast(FSDPModule, model)
        self._strategy = strategy
        name = f"fsdp{strategy.next_training()}"
        self._counts = GradientCounts(strategy, name)
        self._scaler: torch.amp.GradScaler | None = None
        self._running = False  # from the start of forward to the end of backward
        self._keeping = False  # during forward, not while backward recomputes parts of it
        self._outputs: list[torch.Tensor] = []  # of the blocks, since the last backward
        self._unused: list[int] = []  # the outputs without a gradient
        self._found: set[torch.nn.Parameter] = set()  # gathered parameters with a gradient, of this backward
        self._with_gradient: set[torch.nn.Parameter] = set()  # shards with one, of this step
        self._shard_of: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        self._zeros = Zeros(root)
        self._reached: set[torch.nn.Module] = set()  # blocks with such outputs
        self._reset_fsdp = Resetting(root)
        self._hooks: list[Any] = []
        for module in (*units, model):
            self._learn_gathered(module)
            self._hooks.append(module.register_forward_hook(self._keep_outputs))
        self._hooks.append(model.register_forward_hook(self._shard_again, always_call=True))
        names = {shard: name for name, shard in model.named_parameters()}
        gathered = [(names[shard], whole) for whole, shard in self._shard_of.items() if whole.requires_grad]
        self._looking = refuse_sparse_gradients(gathered, strategy.name)
        self.passes = strategy.count_forward_passes((*units, model), name)

    def time_waiting(self, note: Note) -> None:
        super().time_waiting(note)
        time_collectives(self.module, self.waiting)

    def scale_loss(self, scaler: torch.amp.GradScaler) -> None:
        """Scale losses, so that small gradients survive in float16, and skip updates that are not finite."""
        self._scaler = scaler

    def forward(self, *inputs: Any) -> Any:
        if self._running:
            self._reset()  # the last forward had no backward, because of an error
        self._running = self._keeping = True
        self._found.clear()  # from a backward that was not ours
        try:
            with self.passes:
                self._model.unshard()
                output = self.module(*inputs)
        except BaseException:
            self._reset()
            raise
        self._keeping = False
        if not torch.is_grad_enabled():
            self._reset()
        return output

    def backward(self, loss: torch.Tensor) -> None:
        scaled = loss if self._scaler is None else self._scaler.scale(loss)
        anchored: torch.Tensor = _Anchor.apply(scaled, *self._outputs)  # type: ignore[no-untyped-call]
        nodes = [output.grad_fn for output in self._outputs]
        self._outputs.clear()
        self._zeros.begin_backward(self._reached)
        self._reached.clear()
        try:
            with self.passes:
                anchored.backward()  # type: ignore[no-untyped-call]
        except BaseException:
            self._reset_fsdp.backward_failed()
            raise
        self._running = False
        if self._unused:
            # For a block without a gradient, FSDP's functions pass zeros on to the blocks before it.
            self._found -= leaves_below(nodes[number] for number in self._unused) - leaves_of(loss)
            self._unused.clear()
        self._with_gradient.update(self._shard_of[parameter] for parameter in self._found)
        self._found.clear()

    def reduce_gradients(self) -> None:
        parameters = self.parameters
        present = [parameter in self._with_gradient or not parameter.requires_grad for parameter in parameters]
        self._with_gradient.clear()
        self._counts.start(present)
        if not all(present):
            for parameter, count in zip(parameters, self._counts.read(), strict=True):
                if count == 0:
                    parameter.grad = None
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)

    def settle(self) -> None:
        """Wait for counts that this worker did not need."""
        self._counts.settle()

    def gradients(self) -> Iterator[torch.Tensor]:
        yield from map(local_of, super().gradients())

    def measure_grad_norm(self) -> None:
        norm = torch.nn.utils.get_total_norm(super().gradients())
        self._grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def update(self) -> None:
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            before = self._scaler.get_scale()
            self._scaler.update()
            self.skipped = self._scaler.get_scale() < before

    def shard(self, parameter: torch.nn.Parameter) -> Shard:
        weight = local_of(parameter).view(-1)
        start = first_row(parameter) * parameter.shape[1:].numel()
        slots = flat_slots(self.optimizer.state.get(parameter, {}))
        return Shard(start, weight, slots, replicated=self._strategy.worker.world_size == 1)

    def whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        shard = parameter.detach().to(self._strategy.device)  # offloaded or not, it is gathered there
        return cast(DTensor, shard).full_tensor()

    def load_weight(self, parameter: torch.nn.Parameter, flat: torch.Tensor) -> None:
        local = local_of(parameter)
        local.copy_(flat.view(local.shape))

    def loss_scale(self) -> LossScale | None:
        if self._scaler is None:
            return None
        state = self._scaler.state_dict()
        return LossScale(state["scale"], state["_growth_tracker"])

    def load_loss_scale(self, loaded: LossScale) -> None:
        if self._scaler is not None:
            steps = loaded.steps % self._scaler.get_growth_interval()  # it grows at exactly this number
            self._scaler.load_state_dict({**self._scaler.state_dict(), "scale": loaded.scale, "_growth_tracker": steps})

    def finish_loading(self) -> None:
        self._reset()

    def _shaped(self, parameter: torch.nn.Parameter, slots: Slots) -> Slots:
        numel = local_of(parameter).numel()
        return {
            name: sharded_like(parameter, value)
            if isinstance(value, torch.Tensor) and value.shape == (numel,)
            else value
            for name, value in slots.items()
        }

    def _reset(self) -> None:
        """Free what is gathered, and forget a forward that has no backward."""
        self._running = self._keeping = False
        self._outputs.clear()
        self._unused.clear()
        self._reached.clear()
        self._reset_fsdp()

    def release(self) -> None:
        self.passes.release()
        stop_looking(self._looking)
        while self._hooks:
            self._hooks.pop().remove()

    def _learn_gathered(self, module: torch.nn.Module) -> None:
        """Find the gathered parameters of a block, which FSDP keeps, and register hooks for their gradients.

        Before the first forward, which may be in `torch.inference_mode()`: created there, they could not be trained.
        """
        block = cast(FSDPModule, module)
        shards = dict(module.named_parameters())
        block.unshard()
        found = {name: gathered for name, gathered in module.named_parameters() if gathered is not shards[name]}
        self._zeros.learn(module, list(found.values()))
        for name, gathered in found.items():
            self._shard_of[gathered] = shards[name]
            if gathered.is_floating_point():
                trained = gathered.requires_grad
                gathered.requires_grad_()  # a hook needs it, and a frozen parameter may be trained later
                # With the set, and not this engine, which the parameter would keep alive.
                note = partial(_note_gradient, self._found, gathered)
                hook = gathered.register_hook(note)  # type: ignore[no-untyped-call]
                self._hooks.append(hook)
                gathered.requires_grad_(trained)
        block.reshard()

    def _keep_outputs(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._keeping:
            map_structure(partial(self._keep_output, module), output)

    def _keep_output(self, module: torch.nn.Module, value: Any) -> None:
        if isinstance(value, torch.Tensor) and value.requires_grad:
            value.register_hook(partial(self._note_output, module, len(self._outputs)))  # type: ignore[no-untyped-call]
            self._outputs.append(value)
            self._reached.add(module)

    def _note_output(self, module: torch.nn.Module, number: int, gradient: torch.Tensor | None) -> None:
        self._zeros.fill(module)
        if gradient is None:
            self._unused.append(number)

    def _shard_again(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not self._running:
            self._reset()


def _note_gradient(
    found: set[torch.nn.Parameter], parameter: torch.nn.Parameter, gradient: torch.Tensor | None
) -> None:
    if gradient is not None:
        found.add(parameter)


class _Anchor(torch.autograd.Function):
    """A loss that also depends on `outputs`, without a gradient, so that backward visits their blocks."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor, *outputs: torch.Tensor) -> torch.Tensor:
        ctx.outputs = len(outputs)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return *gradients, *itertools.repeat(None, ctx.outputs)
