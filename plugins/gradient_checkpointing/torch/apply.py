"""Find a model's layers, and checkpoint those that the user asks for."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from ....adapters.errors import OptionError
from ..applied import Applied, Options
from ..selection import Candidate, kind_of, select
from .compat import check
from .layer import CheckpointedForward
from .operators import Keep

if TYPE_CHECKING:
    from ....adapters.torch.strategy import TorchStrategy


class TorchCheckpointing(Applied):
    """The checkpointing of one PyTorch model, layer by layer. It does not keep the model."""

    def __init__(self, layers: list[CheckpointedForward]) -> None:
        self._layers = [weakref.ref(layer) for layer in layers]
        for layer in layers:
            layer.install()

    def __getstate__(self) -> dict[str, Any]:
        return {"plan": self.plan, "_layers": []}

    @property
    def layers(self) -> list[CheckpointedForward]:
        """The forward passes that were installed."""
        return [layer for layer in (reference() for reference in self._layers) if layer is not None]

    def unapply(self) -> None:
        for layer in self.layers:
            if vars(layer.layer).get("forward") is layer:
                layer.remove()
        self._layers = []


def apply(model: torch.nn.Module, options: Options, strategy: TorchStrategy) -> TorchCheckpointing:
    """Checkpoint the layers of a model before an engine wraps it.

    Raises:
        OptionError: there are no such layers, or the options do not fit the model or the strategy.
    """
    from .budgeted import BudgetedCheckpointing

    gathers = "parameters" in strategy.capabilities.shards
    layers = checkpointed_layers(model, options, strategy.device, gathers)
    if options.budget is None:
        return TorchCheckpointing(layers)
    return BudgetedCheckpointing(model, layers, options, gathers)


def checkpointed_layers(
    model: torch.nn.Module, options: Options, device: torch.device, gathers: bool = False
) -> list[CheckpointedForward]:
    """Return the forward passes to install.

    Args:
        device: that of the training.
        gathers: whether the engine gathers parameters for each layer.
    """
    check()
    _refuse_own_checkpointing(model)
    if options.offload and device.type != "cuda":
        raise OptionError(
            "offload=True moves inputs from a GPU to host memory, but the model is on the CPU: leave it out"
        )
    for module in model.modules():  # of a training before this one
        earlier = vars(module).get("forward")
        if isinstance(earlier, CheckpointedForward) and earlier.layer is module:
            earlier.remove()
    keep = Keep(options.operators) if options.operators else None
    chosen = set(select(options.layers, list(candidates(model))))
    return [
        CheckpointedForward(module, name, keep, options.offload, gathers)
        for name, module in model.named_modules()
        if name in chosen
    ]


def candidates(model: torch.nn.Module) -> Iterator[Candidate]:
    """Yield the modules inside of a model that have a forward pass."""
    for name, module in model.named_modules():
        if name and _can_run_again(module):
            kind = kind_of(type(module))
            parameters = [(own, tuple(p.shape), str(p.dtype)) for own, p in module.named_parameters()]
            signature = (kind, *sorted(parameters)) if parameters else ()
            yield Candidate(name, kind, signature, name.rpartition(".")[0])


def _can_run_again(module: torch.nn.Module) -> bool:
    """Whether it has a forward pass, in Python."""
    return type(module).forward is not torch.nn.Module.forward and not isinstance(module, torch.jit.ScriptModule)


def _refuse_own_checkpointing(model: torch.nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "gradient_checkpointing", False) is True:  # as Hugging Face's models have it
            raise OptionError(
                f"the model already checkpoints itself ({name or type(module).__name__!r}): call "
                "model.gradient_checkpointing_disable() before, or leave GradientCheckpointing out"
            )
