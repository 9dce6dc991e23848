"""Write a checkpoint without a training, in one process."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from os import PathLike
from typing import Any

import torch

from ...checkpoint.folder import clean, commit, discard
from ...checkpoint.manifest import Manifest, new_data
from ...checkpoint.storage import Storage
from ...progress import Progress
from .state import OBJECTS, pack, plain
from .writer import PartWriter, TensorSlice


def write_checkpoint(
    path: str | PathLike[str],
    tensors: Iterable[tuple[str, torch.Tensor]],
    objects: Mapping[str, Any],
    *,
    progress: Progress,
    strategy: str,
    optimizer: str,
    scheduler: str = "none",
    extras: Mapping[str, Any] | None = None,
    aliases: Mapping[str, str] | None = None,
    callbacks: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Write a checkpoint that any training of this optimizer and scheduler loads, one tensor at a time.

    Args:
        tensors: names (`model/<name>`, `optimizer/<parameter>/<slot>`) and whole tensors in their shapes.
        objects: "groups", "slots", "scheduler" and "model", as in `CheckpointReader.objects`.
        strategy: the name in its manifest.
        optimizer, scheduler: names of their classes.
        aliases: other names of tied parameters, with their first name.
        callbacks: their states, by their names.

    Raises:
        CheckpointError: it could not be loaded without running code.
    """
    storage = Storage(path)
    manifest = Manifest(
        framework="torch",
        strategy=strategy,
        world_size=1,
        saved_at="",
        progress=progress,
        extras=json.loads(json.dumps(dict(extras or {}))),
        optimizer=optimizer,
        scheduler=scheduler,
        aliases=dict(aliases or {}),
        data=new_data(),
        files={},
        tensors={},
        callbacks=json.loads(json.dumps(dict(callbacks or {}))),
    )
    packed = pack(plain(objects))
    storage.folder(manifest.data).make()
    try:
        writer = PartWriter(storage, manifest.data, 0, 1)
        writer.add_file(OBJECTS, packed)
        writer.write(TensorSlice(name, tuple(tensor.shape), 0, tensor.detach().reshape(-1)) for name, tensor in tensors)
        writer.finish()
        commit(storage, manifest)
    except BaseException:
        discard(storage, manifest.data)
        raise
    clean(storage, manifest.data, None)
