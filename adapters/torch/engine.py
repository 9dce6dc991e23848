"""A module on an engine: the primitives for a training step, ours or another framework's."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.manifest import LossScale
from .waiting import Note, Waiting

Slots = dict[str, Any]
"""An optimizer's state of a parameter, by the optimizer's names: `{"exp_avg": tensor, "step": tensor, ...}`."""


class CallingModule(torch.nn.Module):
    """A module that an engine gets instead of the user's `model`; its forward pass calls that."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model


def model_of(module: torch.nn.Module) -> torch.nn.Module:
    """Return the user's model, also of a `CallingModule`."""
    return module.model if isinstance(module, CallingModule) else module


class LossModule(CallingModule):
    """A model together with its loss, so that the engine wraps the whole forward pass.

    `loss_fn` gets the user's own model, so its attributes and submodules work under every engine (unlike on
    DistributedDataParallel's wrapper), and calls of submodules run the engine's hooks.
    """

    def __init__(self, model: torch.nn.Module, loss_fn: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__(model)
        self._loss_fn = (loss_fn,)  # in a tuple, so that a module is not registered as part of this one

    def forward(self, micro_batch: Any, fn: Callable[[Any, Any], Any] | None = None) -> Any:
        """Return the result of `loss_fn`, or of another function of the model and a micro-batch."""
        return (fn or self._loss_fn[0])(self.model, micro_batch)


@dataclass(frozen=True)
class Shard:
    """What this worker holds of a parameter: a contiguous range of its flattened elements.

    start: index of its first element in the flattened parameter.
    weight: the values (numel,), in the memory that the optimizer updates: full precision even if the model computes in
        less. Empty if this worker holds nothing of the parameter.
    slots: the optimizer's state: tensors (numel,) for values of the parameter's shape, in the optimizer's own memory;
        other values unchanged.
    replicated: whether every worker holds the whole parameter.
    """

    start: int
    weight: torch.Tensor
    slots: Slots
    replicated: bool


class Engine:
    """One module on one engine. This base is plain PyTorch in one process; engines override the differences.

    For a step: `forward` and `backward` for each micro-batch, all but the last inside `no_sync()`; then
    `reduce_gradients()`, timed by `waiting()`, `clip_grad_norm()` or `measure_grad_norm()`, and `update()`; after that
    `grad_norm()` is known.

    groups: the module's parameters that the optimizer updates, by its groups.
    waiting: the spans of a step in which this worker waits for the others.
    skipped: whether the last `update` left the parameters unchanged, because gradients in float16 were not finite.
    """

    skipped = False

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

    def update_groups(self) -> None:
        """From now on train the optimizer's current parameters; all workers call it between two steps.

        Raises:
            OptionError: the engine does not support it.
        """
        self.groups = [list(group["params"]) for group in self.optimizer.param_groups]

    def forward(self, *inputs: Any) -> Any:
        """Run the module."""
        return self.module(*inputs)

    def time_waiting(self, note: Note) -> None:
        """From now on call `note(start, end)` for each span in which this worker waits for others."""
        self.waiting.tell(note)

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Inside this context, backward does not reduce gradients, if the engine supports that."""
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the loss's gradients to the parameters; outside `no_sync` the engine may start to reduce them."""
        loss.backward()  # type: ignore[no-untyped-call]

    def reduce_gradients(self) -> None:
        """Return once gradients are the mean over all workers, and those that no worker has are `None`.

        An engine that shards gradients keeps them in its own memory, and may reduce them in `update`.
        """

    def gradients(self) -> Iterator[torch.Tensor]:
        """Yield the reduced gradients that this worker holds, whole or sharded; of a sparse one, its values."""
        for parameter in self.parameters:
            gradient = parameter.grad
            if gradient is not None:
                yield gradient.coalesce().values() if gradient.is_sparse else gradient

    def clip_grad_norm(self, max_norm: float) -> None:
        """Scale the reduced gradients so that their joint L2 norm, over all workers, is at most `max_norm`."""
        # With the measured norm: torch's own function refuses sparse gradients, and reduces the norm of shards twice.
        self.measure_grad_norm()
        torch.nn.utils.clip_grads_with_norm_(self.parameters, max_norm, self.grad_norm())

    def measure_grad_norm(self) -> None:
        """Find the joint L2 norm of the reduced gradients, over all workers, without changing them."""
        # Not `self.gradients()`: get_total_norm reduces DTensors itself.
        self._grad_norm = torch.nn.utils.get_total_norm(Engine.gradients(self))

    def grad_norm(self) -> torch.Tensor:
        """Return the norm of this step's gradients before clipping: (), the same on every worker."""
        assert self._grad_norm is not None
        return self._grad_norm

    def update(self) -> None:
        """Apply the gradients to the parameters."""
        self.optimizer.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Release the module: remove everything of the engine from it, so that another engine may train it."""

    # State for checkpoints, one parameter of the module at a time.

    def shape(self, parameter: torch.nn.Parameter) -> torch.Size:
        """Return the whole parameter's shape."""
        return parameter.shape

    def shard(self, parameter: torch.nn.Parameter) -> Shard:
        """Return what this worker holds of a parameter, updated or frozen."""
        slots = self.optimizer.state.get(parameter, {})
        return Shard(0, parameter.detach().reshape(-1), _flat(slots, parameter.shape), replicated=True)

    def whole(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """Return the whole parameter, detached, in the type of the computation; all workers call it."""
        return parameter.detach()

    def load_weight(self, parameter: torch.nn.Parameter, flat: torch.Tensor) -> None:
        """Load `flat`, new values of `shard(parameter).weight`; it may be that tensor, changed in place."""
        parameter.detach().copy_(flat.view(parameter.shape))

    def load_optimizer(self, groups: Sequence[Mapping[str, Any]], slots: Mapping[torch.nn.Parameter, Slots]) -> None:
        """Load hyperparameters for each group (without "params"), and slots as in `Shard.slots`.

        torch converts types and devices, as in `Optimizer.load_state_dict`.
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

    def loss_scale(self) -> LossScale | None:
        """Return the factor of the losses in float16; `None` if there is none, or if it is constant."""
        return None

    def load_loss_scale(self, loaded: LossScale) -> None:
        """Set the factor of the losses, if this engine has one that changes."""

    def finish_loading(self) -> None:
        """Make the model use the loaded values; all workers call it, after the last `load_weight`."""

    def _holds(self, parameter: torch.nn.Parameter) -> bool:
        """Whether this worker's optimizer updates a shard of the parameter."""
        return True

    def _shaped(self, parameter: torch.nn.Parameter, slots: Slots) -> Slots:
        """Convert slots from `Shard.slots`'s form to the optimizer's."""
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
