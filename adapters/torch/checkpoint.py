"""Save and load a training, as one commit that all workers agree on.

A checkpoint is a folder: `state-<token>.pt` holds the state, and `manifest.json`, replaced atomically and last, names
the file that is the commit. Tensors are read with `weights_only`: a checkpoint never runs code.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

from ..errors import CheckpointError, FarandoleError
from ..progress import Progress
from .named_state import check_fits, state_of, take_up
from .strategy import TorchStrategy

if TYPE_CHECKING:
    from .training import TorchTraining

FORMAT = 1
_MANIFEST = "manifest.json"
_OURS = re.compile(r"state-[0-9a-f]{16}\.pt(\.manifest)?")


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
            _write(Path(path), strategy, state_of(training), progress, dict(extras or {}))

    _together(strategy, write, f"cannot save to {path}")


def load(strategy: TorchStrategy, path: str | PathLike[str], training: TorchTraining) -> Progress:
    """Read a checkpoint; see `Training.load`."""
    read: dict[str, Any] = {}

    def read_and_check() -> None:
        read["manifest"], read["progress"] = _read_manifest(Path(path))
        read["state"] = _read_state(Path(path) / read["manifest"]["data"])
        check_fits(training, read["state"])

    def take() -> None:
        take_up(training, read["state"])
        training.extras = read["manifest"]["extras"]

    _together(strategy, read_and_check, f"cannot load {path}")
    _together(strategy, take, f"cannot load {path}")
    progress: Progress = read["progress"]
    return progress


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
    path: Path, strategy: TorchStrategy, state: dict[str, Any], progress: Progress, extras: dict[str, Any]
) -> None:
    path.mkdir(parents=True, exist_ok=True)
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
        unsafe = get_unsafe_globals_in_checkpoint(path / data)
        if unsafe:
            raise CheckpointError(
                f"the state holds {unsafe[0]}, which could not be loaded without running code: "
                "keep tensors, numbers and text in it"
            )
        with _synced(path / f"{data}.manifest") as file:
            file.write(text.encode())
        os.replace(path / f"{data}.manifest", path / _MANIFEST)
    except BaseException:
        (path / data).unlink(missing_ok=True)
        (path / f"{data}.manifest").unlink(missing_ok=True)
        raise
    _sync_folder(path)
    for stale in path.iterdir():
        if _OURS.fullmatch(stale.name) and stale.name != data:
            stale.unlink(missing_ok=True)


def _read_manifest(path: Path) -> tuple[dict[str, Any], Progress]:
    file = path / _MANIFEST
    try:
        manifest = json.loads(file.read_text())
    except FileNotFoundError:
        found = "is not there" if not path.exists() else "has no manifest.json: no save to it was ever finished"
        raise CheckpointError(f"{path} {found}") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{file} is damaged: {error}") from None
    if isinstance(manifest, dict) and isinstance(manifest.get("format"), int) and manifest["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {manifest['format']}, newer than this Farandole's {FORMAT}: upgrade it"
        )
    try:
        framework, progress = manifest["framework"], Progress(**manifest["progress"])
        if not (isinstance(manifest["format"], int) and isinstance(manifest["extras"], dict)):
            raise TypeError("a part of it has another type")
        if not _OURS.fullmatch(manifest["data"]):
            raise ValueError(f"{manifest['data']!r} is not the name of a state file")
    except (KeyError, TypeError, ValueError, FarandoleError) as error:
        raise CheckpointError(f"{file} is damaged: {type(error).__name__}: {error}") from None
    if framework != "torch":
        raise CheckpointError(f"{path} was saved by {framework}, not by PyTorch")
    return manifest, progress


def _read_state(file: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except pickle.UnpicklingError as error:
        # torch's own message tells how to load it all the same, code and all: not ours to pass on.
        if "GLOBAL" in str(error):
            raise CheckpointError(f"{file} was refused: it holds what could run code") from None
        raise CheckpointError(f"{file} is damaged: it is no state of ours, and could run code") from None
    except Exception as error:
        reason = str(error).splitlines()
        raise CheckpointError(f"{file} is damaged: {reason[0] if reason else type(error).__name__}") from None
    return state


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
