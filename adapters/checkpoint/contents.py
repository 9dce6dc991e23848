"""A whole checkpoint as one process reads it: its content, where that is stored, and whether it is undamaged."""

from __future__ import annotations

from os import PathLike
from typing import ClassVar

from ..errors import CheckpointError
from .manifest import Manifest, Ranges, TensorInfo, check_file, join_parts, part_name, read_manifest, read_part
from .storage import Storage

_FRAMEWORKS = {"torch": "PyTorch", "tensorflow": "TensorFlow"}


class Contents:
    """Base of a framework's reader; manifest and parts are read at once, tensors on request.

    manifest: the checkpoint's manifest.
    storage, folder: its folder, and its data folder.
    ranges: where each tensor's ranges are in the files of `folder`.

    Raises:
        CheckpointError: it is missing, torn, damaged, of another format, or of another framework.
    """

    framework: ClassVar[str]

    def __init__(self, path: str | PathLike[str], _manifest: Manifest | None = None) -> None:
        self.storage = Storage(path)
        self.manifest = read_manifest(self.storage) if _manifest is None else _manifest
        if self.manifest.framework != self.framework:
            saved = _FRAMEWORKS.get(self.manifest.framework, self.manifest.framework)
            raise CheckpointError(f"{path} was saved by {saved}, not by {_FRAMEWORKS[self.framework]}")
        self.folder = self.storage.folder(self.manifest.data)
        self.ranges = self._read_parts()

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Shape and type of each tensor: `model/<name>`, `optimizer/<parameter>/<slot>`."""
        return self.manifest.tensors

    def verify(self, number: int = 0, count: int = 1) -> None:
        """Compare files with their sizes and checksums: all of them, or the `number`-th of `count` groups of equal
        size.

        Raises:
            CheckpointError: one is missing or damaged; the message names it.
        """
        sizes = [0] * count
        for name, expected in sorted(self.manifest.files.items(), key=lambda item: (-item[1].bytes, item[0])):
            taker = sizes.index(min(sizes))
            sizes[taker] += expected.bytes
            if taker == number:
                check_file(self.folder, name, expected, self.folder.info(name))

    def _read_parts(self) -> Ranges:
        ranks = range(self.manifest.world_size)
        missing = {part_name(rank) for rank in ranks} - self.manifest.files.keys()
        if missing:
            raise CheckpointError(f"the manifest of {self.storage.location} is damaged: it lacks {min(missing)}")
        files = self.manifest.files
        parts = [read_part(self.storage, self.manifest.data, rank, files[part_name(rank)])[0] for rank in ranks]
        tensors, ranges = join_parts(parts)
        if tensors != self.tensors:
            raise CheckpointError(f"the manifest of {self.storage.location} is damaged: its parts have other tensors")
        return ranges
