"""Save and load a training by names, so that any engine of replicas takes up what another one left.

A checkpoint is a folder: `state-<token>.pt` holds the tensors, and `manifest.json`, replaced atomically and last, says
which of them is the commit. Tensors are read with `weights_only`: a checkpoint never runs code.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import CheckpointError
from ..progress import Progress
from .strategy import TorchStrategy

if TYPE_CHECKING:
    from .training import TorchTraining

FORMAT = 1
_MANIFEST = "manifest.json"


def save(
    strategy: TorchStrategy,
    path: str | PathLike[str],
    training: TorchTraining,
    progress: Progress,
    extras: Mapping[str, Any] | None,
) -> None:
    """Write a checkpoint; see `Training.save`."""

    def write() -> None:
        if strategy.worker.is_main:
            _write(Path(path), strategy, training, progress, dict(extras or {}))

    _together(strategy, write, f"cannot save to {path}")


def load(strategy: TorchStrategy, path: str | PathLike[str], training: TorchTraining) -> Progress:
    """Read a checkpoint; see `Training.load`."""
    read: dict[str, Any] = {}

    def read_and_check() -> None:
        read["manifest"], read["state"] = _read(Path(path))
        _check_model(training.model, read["state"]["model"])
        read["optimizer"] = _optimizer_state(training.model, training.optimizer, read["state"]["optimizer"])

    def take_up() -> None:
        training.model.load_state_dict(read["state"]["model"])
        training.optimizer.load_state_dict(read["optimizer"])
        if training.scheduler is not None and read["state"]["scheduler"] is not None:
            training.scheduler.load_state_dict(read["state"]["scheduler"])
        training.extras = read["manifest"]["extras"]

    _together(strategy, read_and_check, f"cannot load {path}")
    _together(strategy, take_up, f"cannot load {path}")
    return Progress(**read["manifest"]["progress"])


def _together(strategy: TorchStrategy, act: Callable[[], None], failure: str) -> None:
    """Run `act` on every worker; where one fails, all raise, so that none waits for it."""
    caught: Exception | None = None
    try:
        act()
    except Exception as error:
        caught = error
    reasons = strategy.gather(None if caught is None else f"{type(caught).__name__}: {caught}")
    for rank, reason in enumerate(reasons):
        if reason is not None:
            text = reason.removeprefix("CheckpointError: ")
            raise CheckpointError(f"{failure} (worker {rank}): {text}") from caught


def _write(
    path: Path, strategy: TorchStrategy, training: TorchTraining, progress: Progress, extras: dict[str, Any]
) -> None:
    path.mkdir(parents=True, exist_ok=True)
    state = {
        "model": training.model.state_dict(),
        "optimizer": _named_optimizer_state(training.model, training.optimizer),
        "scheduler": None if training.scheduler is None else training.scheduler.state_dict(),
    }
    data = f"state-{secrets.token_hex(8)}.pt"
    manifest = {
        "format": FORMAT,
        "framework": "torch",
        "strategy": strategy.name,
        "world_size": strategy.worker.world_size,
        "progress": {"epoch": progress.epoch, "step": progress.step},
        "extras": extras,
        "data": data,
    }
    text = json.dumps(manifest, indent=2)  # before the tensors: extras that are no JSON cost nothing
    try:
        with _synced(path / data) as file:
            torch.save(state, file)
        with _synced(path / f"{data}.manifest") as file:
            file.write(text.encode())
        os.replace(path / f"{data}.manifest", path / _MANIFEST)
    except BaseException:
        (path / data).unlink(missing_ok=True)
        (path / f"{data}.manifest").unlink(missing_ok=True)
        raise
    _sync_folder(path)
    for stale in path.glob("state-*"):
        if stale.name != data:
            stale.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
    except FileNotFoundError:
        found = "is not there" if not path.exists() else "has no manifest.json: no save to it was ever finished"
        raise CheckpointError(f"{path} {found}") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path / _MANIFEST} is damaged: {error}") from None
    if manifest.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, newer than this Farandole's {FORMAT}: upgrade it"
        )
    if manifest.get("framework") != "torch":
        raise CheckpointError(f"{path} was saved by {manifest.get('framework')}, not by PyTorch")
    data = path / manifest["data"]
    try:
        state: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{data} is missing") from None
    except Exception as error:
        raise CheckpointError(f"{data} is damaged: {str(error).splitlines()[0]}") from error
    return manifest, state


def _check_model(model: torch.nn.Module, saved: Mapping[str, Any]) -> None:
    own = model.state_dict()
    for name in own.keys() | saved.keys():
        if name not in saved:
            raise CheckpointError(f"the model's {name!r} is not in the checkpoint")
        if name not in own:
            raise CheckpointError(f"the checkpoint's {name!r} is not in the model")
        if isinstance(own[name], torch.Tensor) and own[name].shape != saved[name].shape:
            raise CheckpointError(
                f"{name!r} has shape {tuple(saved[name].shape)} in the checkpoint, "
                f"{tuple(own[name].shape)} in the model"
            )


def _named_optimizer_state(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    groups = [
        {**group, "params": [names[parameter] for parameter in group["params"]]} for group in optimizer.param_groups
    ]
    state = {names[parameter]: slots for parameter, slots in optimizer.state.items() if slots}
    return {"class": type(optimizer).__name__, "state": state, "groups": groups}


def _optimizer_state(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]
) -> dict[str, Any]:
    """Translate what is saved by name into the numbering of this optimizer's `load_state_dict`."""
    if type(optimizer).__name__ != saved["class"]:
        raise CheckpointError(f"its optimizer is {saved['class']}, but this training uses {type(optimizer).__name__}")
    names = {parameter: name for name, parameter in model.named_parameters()}
    own_groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    saved_groups = [group["params"] for group in saved["groups"]]
    if own_groups != saved_groups:
        raise CheckpointError("its optimizer groups parameters in another way than this training's")
    numbers = {name: number for number, name in enumerate(name for group in own_groups for name in group)}
    groups = []
    for group in saved["groups"]:
        groups.append({**group, "params": [numbers[name] for name in group["params"]]})
    return {"state": {numbers[name]: slots for name, slots in saved["state"].items()}, "param_groups": groups}


@contextlib.contextmanager
def _synced(path: Path) -> Iterator[Any]:
    """Open a new file to write, and have it on disk when the block ends."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
