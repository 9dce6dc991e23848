"""What a path holds, by the names of the files in it, and new places that appear whole or not at all."""

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
    """Return whose checkpoint is at a path, whole or torn; `None` where it looks like none.

    Raises:
        CheckpointError: there is nothing.
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
    """Return the folder with the files of a DeepSpeed checkpoint: the path itself, or the one that its `latest` names.

    Raises:
        CheckpointError: it names none that is there.
    """
    folder = Path(path)
    if not (folder / _LATEST).is_file():
        return folder
    tag = (folder / _LATEST).read_text().strip()
    if not (folder / tag).is_dir():
        raise CheckpointError(f"{folder / _LATEST} names {tag!r}, but {folder / tag} is not there")
    return folder / tag


def refuse_untrusted(path: str, trust: bool) -> None:
    """Refuse to unpickle unless the user said that it is safe.

    Raises:
        OptionError: nobody said so.
    """
    if not trust:
        raise OptionError(
            f"{path} holds pickles, which run whatever code their author put in them when they are read: "
            "if you trust where it comes from, add --trust"
        )


def refuse_existing(out: str) -> None:
    """Refuse to write over anything.

    Raises:
        CheckpointError: something is at `out`.
    """
    if Storage(out).exists():
        raise CheckpointError(f"{out} is there already: choose another place, or remove it first")


@contextlib.contextmanager
def new_place(out: str) -> Iterator[Path]:
    """Give a place beside `out` to write a file or folder at, and move it to `out` when the block ends well.

    Raises:
        CheckpointError: something is at `out`, or it is not on this machine.
    """
    if "://" in out:
        raise CheckpointError(f"{out} is not on this machine: write to a local path, and copy it")
    refuse_existing(out)
    target = Path(out)
    partial = target.with_name(f"{target.name}.partial")
    _remove(partial)  # left by one that was killed
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise CheckpointError(f"cannot write {out}: {error.strerror or error}") from None
    finally:
        _remove(partial)


def require(*modules: str, fix: str) -> None:
    """Raise `EngineUnavailableError` where a package is missing that a command needs."""
    for module in modules:
        if package(module) is None:
            raise EngineUnavailableError(f"this needs {module}, which is not installed. Install it with: {fix}")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
