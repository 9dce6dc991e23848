"""What an engine makes of a module: the primitives that a training step, ours or another framework's, is built from."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .waiting import Note, Waiting

Slots = dict[str, Any]
"""What an optimizer keeps for a parameter, by the optimizer's names: `{"exp_avg": tensor, "step": tensor, ...}`."""


class CallingModule(torch.nn.Module):
    """What an engine is handed in the place of the user's `model`, which its forward pass calls."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


def model_of(module: torch.nn.Module) -> torch.nn.Module:
    """Return the user's model, where an engine was handed what calls it."""
    return module.model if isinstance(module, CallingModule) else module


class LossModule(CallingModule):
    """A model together with its loss, so that the engine wraps the whole forward pass.

    `loss_fn` gets the user's own model: its attributes and submodules work under every engine, which they do not on
    DistributedDataParallel's wrapper, and a call of a submodule cannot slip past the engine's hooks.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__(model)
        self._loss_fn = (loss_fn,)  # in a tuple, so that a module is not registered as part of this one

    def forward(self, micro_batch: Any, fn: Callable[[Any, Any], Any] | None = None) -> Any:
        """Return what `loss_fn`, or another function of the model and a micro-batch, makes of it."""
        return (fn or self._loss_fn[0])(self.model, micro_batch)


@dataclass(frozen=True)
class Shard:
    """The contiguous range of a parameter's flattened elements that this worker keeps up to date.

    start: index of its first element in the flattened parameter.
    weight: the values (numel,), the very memory that the optimizer updates: full precision where the model computes in
        less. Empty where this worker holds nothing of the parameter.
    slots: what the optimizer keeps: tensors (numel,) for values of the parameter's shape, in the optimizer's own
        memory; anything else as it is.
    replicated: whether every worker holds this same range, the whole parameter.
    """

    start: int
    weight: torch.Tensor
    slots: Slots
    replicated: bool


class Engine:
    """One module on one engine. This base is plain PyTorch in one process; engines override what they do otherwise.

    For a step: `forward` and `backward` for each micro-batch, all but the last inside `no_sync()`; then
    `reduce_gradients()`, which is timed by `waiting()`, `clip_grad_norm()` or `measure_grad_norm()`, and `update()`;
    `grad_norm()` is known then.

    groups: the module's parameters that the optimizer updates, by its groups.
    waiting: the spans of a step in which this worker waits for the others.
    """

    def __init__(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.module = module
        self.optimizer = optimizer
        self.groups: list[list[torch.nn.Parameter]] = [list(group["params"]) for group in optimizer.param_groups]
        self._grad_norm: torch.Tensor | None = None
        self.waiting = Waiting()

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The module's parameters that the optimizer updates."""
        return [parameter for group in self.groups for parameter in group]

    def take_up_groups(self) -> None:
        """Train from now on what the optimizer was given since; all workers call it between two steps.

        Raises:
            OptionError: the engine cannot.
        """
        self.groups = [list(group["params"]) for group in self.optimizer.param_groups]

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        return self.module(*inputs)

    def time_waiting(self, note: Note) -> None:
        """Have `note(start, end)` called for each span in which this worker waits for others, from now on."""
        self.waiting.tell(note)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """While it is open, forward and backward keep gradients on this worker, where the engine can."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to the parameters; outside `no_sync` the engine may start to reduce them."""
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce_gradients(self) -> None:
        """Return once gradients are the mean over all workers, and those that no worker has are `None`.

        An engine that shards gradients keeps them in its own memory, and may reduce them in `update`.
        """

    def gradients(self) -> Iterator[torch.Tensor]:
        """Yield the reduced gradients that this worker holds, whole or in part; of a sparse one, its values."""
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is not None:
                yield gradient.coalesce().values() if gradient.is_sparse else gradient

    def clip_grad_norm(self, max_norm: float) -> None:
        """Have the reduced gradients scaled so that their joint L2 norm, over all workers, is at most `max_norm`."""
        # By what is measured: torch's own function refuses sparse gradients, and reduces the norm of shards twice.
        self.measure_grad_norm()
        torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, self.grad_norm())

    def measure_grad_norm(self) -> None:
        """Find the joint L2 norm of the reduced gradients, over all workers, and leave them as they are."""
        # Of the parameters' own gradients, whatever an engine yields of its shards: those of DTensors are joint norms.
        self._grad_norm = torch.nn.utils.get_total_norm(Engine.gradients(self))

    def grad_norm(self) -> torch.Tensor:
        """Return the norm that this step's gradients had before they were clipped: (), the same on every worker."""
        assert self._grad_norm is not None
        return self._grad_norm

    def update(self) -> None:
        """Apply the gradients to the parameters."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Let go of the module: nothing of the engine acts on it any more, so that another one may take it."""

    # State: what a checkpoint reads and writes, one parameter of the module at a time.

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        """Return the whole parameter's shape."""
        return parameter.shape

    def shard(self, parameter: torch.nn.Parameter) -> Shard:
        """Return what this worker holds of a parameter, updated or frozen."""
        slots = self.optimizer.state.get(parameter, {})
        return Shard(0, parameter.detach().reshape(-1), _flat(slots, parameter.shape), replicated=True)

    def whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the whole parameter, detached, in the type that it computes in; all workers call it."""
        return parameter.detach()

    def load_weight(self, parameter: torch.nn.Parameter, flat: torch.Tensor) -> None:
        """Take up `flat`, new values for `shard(parameter).weight`, which may be that tensor, changed in place."""
        parameter.detach().copy_(flat.view(parameter.shape))

    def load_optimizer(self, groups: Sequence[Mapping[str, Any]], slots: Mapping[torch.nn.Parameter, Slots]) -> None:
        """Take up hyperparameters for each group (without "params"), and slots as in `Shard.slots`.

        torch decides what becomes of them (types, devices), as in `Optimizer.load_state_dict`.
        """
        numbers = itertools.count()
        state: dict[int, Slots] = {}
        described: list[dict[str, Any]] = []
        for group, parameters in zip(groups, self.groups, strict=True):
            own = [(next(numbers), parameter) for parameter in parameters if self._holds(parameter)]
            described.append({**group, "params": [number for number, _ in own]})
            state |= {
                number: self._shaped(parameter, slots[parameter]) for number, parameter in own if slots.get(parameter)
            }
        self.optimizer.load_state_dict({"state": state, "param_groups": described})

    def finish_loading(self) -> None:
        """Make the model compute with what was loaded; all workers call it, after the last `load_weight`."""

    def _holds(self, parameter: torch.nn.Parameter) -> bool:
        """Whether the optimizer of this worker updates a part of the parameter."""
        return True

    def _shaped(self, parameter: torch.nn.Parameter, slots: Slots) -> Slots:
        """Return slots as the optimizer has them, from what `Shard.slots` makes of them."""
        shape, numel = parameter.shape, parameter.numel()
        return {
            name: value.view(shape) if isinstance(value, torch.Tensor) and value.shape == (numel,) else value
            for name, value in slots.items()
        }


def _flat(slots: Mapping[str, Any], shape: torch.Size) -> Slots:
    return {
        name: value.reshape(-1) if isinstance(value, torch.Tensor) and value.shape == shape else value
        for name, value in slots.items()
    }
