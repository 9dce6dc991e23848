"""The checkpoint format: a manifest, which is the commit, and a part per worker, which lists what it wrote.

    PATH/manifest.json                      written last; names the data folder and all files in it
    PATH/data-<16 hex>/part-<rank>.json     ranges of tensors that a worker wrote, and the files they are in
    PATH/data-<16 hex>/objects.pt           everything but tensors, written by worker 0
    PATH/data-<16 hex>/__<number>_0.distcp  the ranges themselves
    PATH/data-<16 hex>/failed-<rank>.txt    why a worker could not write its part; never in a whole checkpoint

A tensor is stored flattened: `model/<name>`, or `optimizer/<parameter>/<slot>`. Its ranges may be in any files.
Everything here is JSON: reading it runs no code.
"""

from __future__ import annotations

import json
import math
import re
import time
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from ..errors import CheckpointError, FarandoleError
from ..progress import Progress
from .storage import FileInfo, Storage

FORMAT = 2
MANIFEST = "manifest.json"
DATA = re.compile(r"data-[0-9a-f]{16}")
_FILE = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class TensorInfo:
    """A whole tensor's shape and element type, by the framework's name ("float32")."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Range:
    """`length` elements of a flattened tensor from `start` on, and where they are stored: the bytes of a file."""

    start: int
    length: int
    file: str
    offset: int
    bytes: int


Ranges = dict[str, list[Range]]
"""Ranges of tensors by the tensors' names, sorted by start."""


@dataclass(frozen=True)
class Part:
    """What one worker wrote."""

    tensors: Mapping[str, TensorInfo]
    ranges: Mapping[str, list[Range]]
    files: Mapping[str, FileInfo]


@dataclass(frozen=True)
class LossScale:
    """The factor of the losses of a training in float16, which follows whether gradients are finite.

    steps: updates since the last one that was skipped, or since the factor grew.
    hysteresis: how many updates may still be skipped before the factor shrinks, if the engine counts them.
    """

    scale: float
    steps: int
    hysteresis: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    framework: "torch" or "tensorflow"; only its own checkpoints load.
    strategy, world_size: what saved it.
    saved_at: time of the commit, UTC, ISO 8601.
    data: name of the folder with the files.
    files: all files in it.
    tensors: all tensors in it.
    callbacks: the callbacks' states, by their names.
    attempt: how often the run had begun again from a checkpoint before this save.
    aliases: tensors with several names: the other names, each with the name that the tensor is stored under.
    optimizer, scheduler: their classes' names; "none" where there is none.
    loss_scale: of a training in float16.
    """

    framework: str
    strategy: str
    world_size: int
    saved_at: str
    progress: Progress
    extras: dict[str, Any]
    optimizer: str
    scheduler: str
    aliases: dict[str, str]
    data: str
    files: dict[str, FileInfo]
    tensors: dict[str, TensorInfo]
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempt: int = 0
    loss_scale: LossScale | None = None


def slots_by_parameter(tensors: Iterable[str]) -> dict[str, list[str]]:
    """Return the optimizer's slots by parameter, from the names of all tensors."""
    slots: dict[str, list[str]] = defaultdict(list)
    for tensor in tensors:
        kind, _, rest = tensor.partition("/")
        if kind == "optimizer":
            name, _, slot = rest.rpartition("/")
            slots[name].append(slot)
    return slots


def now() -> str:
    """Return the time as `Manifest.saved_at` has it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def new_data() -> str:
    """Return a name for the data folder of a save that begins; later ones sort after it."""
    return f"data-{time.time_ns():016x}"


def part_name(rank: int) -> str:
    """Return the file name of a worker's part."""
    return f"part-{rank}.json"


def failure_name(rank: int) -> str:
    """Return the file name of a worker's note that it could not write its part."""
    return f"failed-{rank}.txt"


def write_part(storage: Storage, data: str, rank: int, part: Part) -> None:
    """Write a worker's part, after all of its files."""
    content = {
        "tensors": {name: [info.shape, info.dtype] for name, info in part.tensors.items()},
        "ranges": {
            name: [[r.start, r.length, r.file, r.offset, r.bytes] for r in ranges]
            for name, ranges in part.ranges.items()
        },
        "files": {name: asdict(info) for name, info in part.files.items()},
    }
    storage.folder(data).put(part_name(rank), json.dumps(content).encode())


def read_part(storage: Storage, data: str, rank: int, expected: FileInfo | None = None) -> tuple[Part, FileInfo]:
    """Return a worker's part, and its file's size and checksum.

    Raises:
        CheckpointError: it is missing, damaged, or not as `expected`.
    """
    folder = storage.folder(data)
    text = folder.read(part_name(rank))
    info = FileInfo(len(text), zlib.crc32(text))
    if expected is not None:
        check_file(folder, part_name(rank), expected, info)
    try:
        content = json.loads(text)
        part = Part(
            {name: _tensor(shape, dtype) for name, (shape, dtype) in content["tensors"].items()},
            {name: [Range(*values) for values in ranges] for name, ranges in content["ranges"].items()},
            _files(content["files"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder.place(part_name(rank))} is damaged: {type(error).__name__}: {error}") from None
    return part, info


def join_parts(parts: Iterable[Part]) -> tuple[dict[str, TensorInfo], Ranges]:
    """Return the tensors of all parts and their ranges.

    Raises:
        CheckpointError: the parts contradict each other, or their ranges leave a tensor incomplete.
    """
    tensors: dict[str, TensorInfo] = {}
    ranges: Ranges = defaultdict(list)
    for part in parts:
        for name, info in part.tensors.items():
            if tensors.setdefault(name, info) != info:
                raise CheckpointError(f"workers differ about {name!r}: {tensors[name]} and {info}")
        for name, own in part.ranges.items():
            ranges[name] += own
    for name, info in tensors.items():
        ranges[name].sort(key=lambda stored: stored.start)
        ends = [0, *(stored.start + stored.length for stored in ranges[name])]
        starts = [*(stored.start for stored in ranges[name]), info.numel]
        for start, end in zip(starts, ends, strict=True):
            if start != end:
                raise CheckpointError(f"the ranges of {name!r} do not make up its {info.numel} elements, from {end} on")
    return tensors, dict(ranges)


def write_manifest(storage: Storage, manifest: Manifest) -> None:
    """Commit a checkpoint: from now on it is the one that is loaded."""
    content = {"format": FORMAT, **asdict(manifest), "progress": manifest.progress.as_json()}
    for name in ("callbacks", "attempt", "loss_scale"):
        if not content[name]:  # which earlier versions do not know
            del content[name]
    storage.put(MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(storage: Storage) -> Manifest:
    """Return the manifest of the checkpoint in a folder.

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    if MANIFEST not in storage.sizes():
        found = "has no manifest.json: no save to it was ever finished" if storage.exists() else "is not there"
        raise CheckpointError(f"{storage.location} {found}")
    return parse_manifest(storage, storage.read(MANIFEST))


def parse_manifest(storage: Storage, text: bytes) -> Manifest:
    """Return the manifest that `text`, read from a folder, holds.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    try:
        content = json.loads(text)
        if (found := content.pop("format")) == FORMAT:
            return _manifest(content)
        if not isinstance(found, int):
            raise TypeError("its format is not a number")
    except (KeyError, TypeError, ValueError, AttributeError, FarandoleError) as error:
        raise CheckpointError(f"{storage.place(MANIFEST)} is damaged: {type(error).__name__}: {error}") from None
    age, fix = ("newer", "upgrade it") if found > FORMAT else ("older", "load it with the version that saved it")
    raise OtherFormat(f"{storage.location} has format {found}, {age} than this Farandole's {FORMAT}: {fix}")


class OtherFormat(CheckpointError):
    """The checkpoint has a newer or an older format; it may be whole."""


def check_file(folder: Storage, name: str, expected: FileInfo, found: FileInfo) -> None:
    """Compare a file with what the manifest says of it.

    Raises:
        CheckpointError: it differs.
    """
    if found.bytes != expected.bytes:
        raise CheckpointError(f"{folder.place(name)} is damaged: it has {found.bytes} bytes, not {expected.bytes}")
    if found.crc32 != expected.crc32:
        raise CheckpointError(f"{folder.place(name)} is damaged: its checksum is another, so its bytes changed")


def _manifest(content: dict[str, Any]) -> Manifest:
    content["progress"] = Progress(**content["progress"])
    content["tensors"] = {name: _tensor(**info) for name, info in content["tensors"].items()}
    content["files"] = _files(content["files"])
    if content.get("loss_scale") is not None:
        content["loss_scale"] = LossScale(**content["loss_scale"])
    manifest = Manifest(**content)
    kinds = {"extras": dict, "callbacks": dict, "aliases": dict, "world_size": int, "saved_at": str, "attempt": int}
    for name, kind in kinds.items():
        if not isinstance(getattr(manifest, name), kind):
            raise TypeError(f"{name} has another type")
    if not DATA.fullmatch(manifest.data):
        raise ValueError(f"{manifest.data!r} is not the name of a data folder")
    return manifest


def _tensor(shape: Iterable[int], dtype: str) -> TensorInfo:
    return TensorInfo(tuple(map(int, shape)), str(dtype))


def _files(content: dict[str, Any]) -> dict[str, FileInfo]:
    for name in content:
        if not _FILE.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a file of ours")
    return {name: FileInfo(**info) for name, info in content.items()}
