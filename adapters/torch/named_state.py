"""A training's state by names, in plain types, so that another engine, or another order of parameters, takes it up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..errors import CheckpointError
from ..structure import map_structure

if TYPE_CHECKING:
    from .training import TorchTraining


def state_of(training: TorchTraining) -> dict[str, Any]:
    """Return model, optimizer and scheduler as tensors, numbers and text."""
    names = _names(training.model)
    optimizer, scheduler = training.optimizer, training.scheduler
    state = {
        "model": training.model.state_dict(),
        "optimizer": {
            "class": type(optimizer).__name__,
            "state": {names[parameter]: slots for parameter, slots in optimizer.state.items() if slots},
            "groups": [
                {**group, "params": [names[parameter] for parameter in group["params"]]}
                for group in optimizer.param_groups
            ],
        },
        "scheduler_class": _class_name(scheduler),
        "scheduler": None if scheduler is None else scheduler.state_dict(),
    }
    plain: dict[str, Any] = map_structure(lambda leaf: leaf.item() if isinstance(leaf, np.generic) else leaf, state)
    return plain


def check_fits(training: TorchTraining, state: Mapping[str, Any]) -> None:
    """Compare a saved state with the training that is to take it up, which is left as it is.

    Raises:
        CheckpointError: names, shapes, or the kinds of optimizer or scheduler differ; the message names the first.
    """
    own, saved = training.model.state_dict(), state["model"]
    for name in sorted(own.keys() | saved.keys()):
        if name not in saved:
            raise CheckpointError(f"the model's {name!r} is not in the checkpoint")
        if name not in own:
            raise CheckpointError(f"the checkpoint's {name!r} is not in the model")
        if isinstance(own[name], torch.Tensor) and own[name].shape != saved[name].shape:
            raise CheckpointError(
                f"{name!r} has shape {tuple(saved[name].shape)} in the checkpoint, "
                f"{tuple(own[name].shape)} in the model"
            )
    _compare("optimizer", state["optimizer"]["class"], type(training.optimizer).__name__)
    _compare("scheduler", state["scheduler_class"], _class_name(training.scheduler))
    if _groups(training) != [group["params"] for group in state["optimizer"]["groups"]]:
        raise CheckpointError("its optimizer groups parameters in another way than this training's")


def take_up(training: TorchTraining, state: Mapping[str, Any]) -> None:
    """Load a state that `check_fits` found fitting."""
    training.model.load_state_dict(state["model"])
    numbers = {name: number for number, name in enumerate(name for group in _groups(training) for name in group)}
    training.optimizer.load_state_dict(
        {
            "state": {numbers[name]: slots for name, slots in state["optimizer"]["state"].items()},
            "param_groups": [
                {**group, "params": [numbers[name] for name in group["params"]]}
                for group in state["optimizer"]["groups"]
            ],
        }
    )
    if training.scheduler is not None:
        training.scheduler.load_state_dict(state["scheduler"])


def _names(model: torch.nn.Module) -> dict[torch.Tensor, str]:
    return {parameter: name for name, parameter in model.named_parameters()}


def _groups(training: TorchTraining) -> list[list[str]]:
    names = _names(training.model)
    return [[names[parameter] for parameter in group["params"]] for group in training.optimizer.param_groups]


def _class_name(scheduler: Any) -> str:
    return "none" if scheduler is None else type(scheduler).__name__


def _compare(kind: str, saved: str, own: str) -> None:
    if saved != own:
        raise CheckpointError(f"its {kind} is {saved}, but this training uses {own}")
