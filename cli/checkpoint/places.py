"""Recognize the format of a path by its file names, and create new files or folders atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ...adapters.checkpoint.manifest import DATA, MANIFEST
from ...adapters.checkpoint.storage import Storage
from ...adapters.errors import CheckpointError, EngineUnavailableError, OptionError
from ...plugins.launch.installed import package

Kind = Literal["farandole", "deepspeed", "dcp"]

_LATEST = "latest"  # in it DeepSpeed writes the name of the newest checkpoint's folder, its tag
_DEEPSPEED_FILES = ("_model_states.pt", "_optim_states.pt")


def kind_of(path: str) -> Kind | None:
    """Return the format of the checkpoint at a path, whole or torn; `None` if it looks like none.

    Raises:
        CheckpointError: there is nothing at the path.
    """
    storage = Storage(path)
    files, folders = storage.sizes(), storage.folders()
    if MANIFEST in files or any(DATA.fullmatch(name) for name in folders):
        return "farandole"
    if ".metadata" in files:
        return "dcp"
    if _LATEST in files or any(name.endswith(_DEEPSPEED_FILES) for name in files):
        return "deepspeed"
    if not storage.exists():
        raise CheckpointError(f"{path} is not there")
    return None


def tag_folder(path: str) -> Path:
    """Return the folder with the files of a DeepSpeed checkpoint: the path itself, or the folder named in its `latest`.

    Raises:
        CheckpointError: the folder named there does not exist.
    """
    folder = Path(path)
    if not (folder / _LATEST).is_file():
        return folder
    tag = (folder / _LATEST).read_text().strip()
    if not (folder / tag).is_dir():
        raise CheckpointError(f"{folder / _LATEST} names {tag!r}, but {folder / tag} is not there")
    return folder / tag


def refuse_untrusted(path: str, trust: bool) -> None:
    """Refuse to unpickle without the user's consent.

    Raises:
        OptionError: `trust` is false.
    """
    if not trust:
        raise OptionError(
            f"{path} contains pickles, which can run any code of their author when they are read: "
            "if you trust the author, add --trust"
        )


def refuse_existing(out: str) -> None:
    """Refuse to overwrite anything.

    Raises:
        CheckpointError: `out` exists.
    """
    if Storage(out).exists():
        raise CheckpointError(f"{out} exists already: choose another path, or remove it first")


@contextlib.contextmanager
def new_place(out: str) -> Iterator[Path]:
    """Yield a path beside `out` to write a file or folder to, and move it to `out` if the block succeeds.

    Raises:
        CheckpointError: `out` exists, or is not on this machine.
    """
    if "://" in out:
        raise CheckpointError(f"{out} is not on this machine: write to a local path, and copy it")
    refuse_existing(out)
    target = Path(out)
    partial = target.with_name(f"{target.name}.partial")
    _remove(partial)  # left by a killed process
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        _remove(partial)


def require(*modules: str, fix: str) -> None:
    """Raise `EngineUnavailableError` if a package that a command needs is missing."""
    for module in modules:
        if package(module) is None:
            raise EngineUnavailableError(f"this needs {module}, which is not installed. Install it with: {fix}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
