"""Convert a model's state from torch.distributed.checkpoint (DCP). Its `.metadata` is a pickle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from ...adapters.errors import CheckpointError, OptionError
from ...adapters.progress import Progress
from ...adapters.torch.checkpoint import write_checkpoint
from .one_process import alone

_BYTES_AT_ONCE = 256 << 20


def convert_dcp(path: str, out: str, key: str | None, tied: Sequence[str], progress: tuple[int, int] | None) -> int:
    """Write the model's state as a checkpoint without optimizer state, and return its number of tensors.

    Args:
        key: the key of the model's state, if it was saved as {key: model.state_dict(), ...}.
        tied: parameters with two names, as "second=first".

    Raises:
        CheckpointError, OptionError: it cannot be read, or is not one model's state.
    """
    try:
        metadata = FileSystemReader(path).read_metadata()
    except Exception as error:
        raise CheckpointError(f"{path}/.metadata could not be read: {type(error).__name__}: {error}") from None
    paths = metadata.planner_data or {name: (name,) for name in metadata.state_dict_metadata}
    names = _choose(path, {name: tuple(map(str, parts)) for name, parts in paths.items()}, key)
    tensors: dict[str, TensorStorageMetadata] = {}
    for stored, name in names.items():
        found = metadata.state_dict_metadata[stored]
        if not isinstance(found, TensorStorageMetadata):
            raise CheckpointError(f"{path} holds {name!r}, which is not a tensor: only tensors can be converted")
        tensors[stored] = found
    aliases = _aliases(path, tied, list(names.values()))
    stored_names = {name: stored for stored, name in names.items()}
    for second, first in aliases.items():
        both = _load(path, {stored_names[name]: tensors[stored_names[name]] for name in (second, first)})
        if not torch.equal(*both.values()):
            raise OptionError(f"--tied {second}={first}: their values in {path} differ")
    values = ((f"model/{names[stored]}", value) for stored, value in _read(path, tensors, aliases, names))
    write_checkpoint(
        out,
        values,
        {"groups": [], "slots": {}, "scheduler": None, "model": {}},
        progress=Progress(*(progress or ())),
        strategy="torch.distributed.checkpoint",
        optimizer="none",
        aliases=aliases,
    )
    return len(names) - len(aliases)


def _choose(path: str, paths: dict[str, tuple[str, ...]], key: str | None) -> dict[str, str]:
    """Return the stored names of the model's entries, with their names in the model."""
    tops = sorted({parts[0] for parts in paths.values() if len(parts) > 1})
    if key is None:
        if tops:
            raise OptionError(f"{path} holds more than a model's state: choose the model's with --key: {_list(tops)}")
        return {stored: parts[0] for stored, parts in paths.items()}
    if key not in tops:
        raise OptionError(f"{path} has no --key {key!r}: it holds {_list(tops) or 'the state of one model'}")
    return {stored: ".".join(parts[1:]) for stored, parts in paths.items() if parts[0] == key and len(parts) > 1}


def _aliases(path: str, tied: Sequence[str], names: list[str]) -> dict[str, str]:
    aliases: dict[str, str] = {}
    for pair in tied:
        second, _, first = pair.partition("=")
        if second not in names or first not in names or second == first:
            raise OptionError(f"--tied {pair}: it must be NAME=FIRST, two names of tensors in {path}")
        aliases[second] = first
    return aliases


def _read(
    path: str, tensors: dict[str, TensorStorageMetadata], aliases: dict[str, str], names: dict[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors, except second names of tied ones, with a limited number in memory at a time."""
    batch: dict[str, TensorStorageMetadata] = {}
    size = 0
    for stored, found in tensors.items():
        if names[stored] not in aliases:
            batch[stored] = found
            size += found.size.numel() * found.properties.dtype.itemsize
            if size >= _BYTES_AT_ONCE:
                yield from _load(path, batch).items()
                batch, size = {}, 0
    yield from _load(path, batch).items()


def _load(path: str, tensors: dict[str, TensorStorageMetadata]) -> dict[str, torch.Tensor]:
    values = {stored: torch.empty(found.size, dtype=found.properties.dtype) for stored, found in tensors.items()}
    try:
        with alone():
            load(values, checkpoint_id=path, no_dist=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(f"{path} could not be read: {type(error).__name__}: {reason}") from None
    return values


def _list(names: list[str]) -> str:
    return ", ".join(names)
