"""Folders for checkpoints: local ones, and those that fsspec reaches (https://filesystem-spec.readthedocs.io)."""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

# They have no real folders, and makedirs would create a missing bucket, which its owner should do.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"})
_BLOCK = 4 << 20


@dataclass(frozen=True)
class FileInfo:
    """What a file must be: its size in bytes, and their CRC-32 (as zlib's)."""

    bytes: int
    crc32: int


class Storage:
    """A folder, and the files in it by their names relative to it.

    location: the folder as the user wrote it, for messages.
    """

    def __init__(self, location: str | PathLike[str], _opened: tuple[Any, str] | None = None) -> None:
        self.location = os.fspath(location)
        self._fs, self._root = _open(self.location) if _opened is None else _opened
        protocols = {self._fs.protocol} if isinstance(self._fs.protocol, str) else set(self._fs.protocol)
        self._local = "file" in protocols
        self._has_folders = not protocols & _OBJECT_STORES

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self._root.rpartition("/")[2]

    def place(self, name: str) -> str:
        """Return where a file is, as the user would write it."""
        return f"{self.location.rstrip('/')}/{name}"

    def folder(self, name: str) -> Storage:
        """Return a folder inside this one."""
        return Storage(self.place(name), (self._fs, f"{self._root}/{name}"))

    def parent(self) -> Storage | None:
        """Return the folder that this one is in; `None` at the top of the storage."""
        root = self._root.rpartition("/")[0]
        if not root:
            return None
        return Storage(root if self._local else self._fs.unstrip_protocol(root), (self._fs, root))

    def exists(self) -> bool:
        """Whether the folder, or a file in its place, exists."""
        return bool(self._fs.exists(self._root))

    def make(self) -> None:
        """Make the folder, and those that it is in."""
        if self._local:
            missing = [path for path in (Path(self._root), *Path(self._root).parents) if not path.exists()]
            os.makedirs(self._root, exist_ok=True)
            for path in missing:
                _sync_folder(path.parent)
        elif self._has_folders:
            self._fs.makedirs(self._root, exist_ok=True)

    def sizes(self) -> dict[str, int]:
        """Return the files in the folder with their sizes in bytes; empty if there is no folder."""
        return {name: entry["size"] for name, entry in self._entries().items() if entry["type"] == "file"}

    def folders(self) -> list[str]:
        """Return the names of the folders in this one; empty if there is no folder."""
        return sorted(name for name, entry in self._entries().items() if entry["type"] == "directory")

    def read(self, name: str) -> bytes:
        """Return a file's content.

        Raises:
            CheckpointError: it is not there.
        """
        with self.open(name) as file:
            content: bytes = file.read()
        return content

    @contextlib.contextmanager
    def open(self, name: str) -> Iterator[Any]:
        """Open a file to read its bytes at any position.

        Raises:
            CheckpointError: it is not there.
        """
        path = f"{self._root}/{name}"
        try:
            opened = open(path, "rb") if self._local else self._fs.open(path, "rb")  # noqa: SIM115
        except FileNotFoundError:
            raise CheckpointError(f"{self.place(name)} is missing") from None
        with opened as file:
            yield file

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[WriteStream]:
        """Open a new file for sequential writing; when the block ends, it is on disk."""
        path = f"{self._root}/{name}"
        with open(path, "wb") if self._local else self._fs.open(path, "wb") as file:
            stream = WriteStream(file)
            try:
                yield stream
            except BaseException:
                if stream.failure is not None:  # the cause; torch would report an unfinished archive
                    raise stream.failure from None
                raise
            if self._local:
                file.flush()
                os.fsync(file.fileno())

    def put(self, name: str, content: bytes) -> None:
        """Write a small file atomically: others see all of it or, also after a crash, the earlier file."""
        path = f"{self._root}/{name}"
        if not self._local:
            self._fs.pipe_file(path, content)
            return
        partial = f"{path}.partial"
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial)
            raise
        _sync_folder(Path(self._root))

    def info(self, name: str) -> FileInfo:
        """Read a file to its end, and return its size and checksum.

        Raises:
            CheckpointError: it is not there.
        """
        size = crc32 = 0
        with self.open(name) as file:
            while block := file.read(_BLOCK):
                size += len(block)
                crc32 = zlib.crc32(block, crc32)
        return FileInfo(size, crc32)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")

    def remove_folder(self, name: str) -> None:
        """Remove a folder and the files in it; a folder that holds other folders stays."""
        folder = self.folder(name)
        for file in folder.sizes():
            folder.remove(file)
        if self._has_folders:
            with contextlib.suppress(OSError):
                self._fs.rmdir(f"{self._root}/{name}")

    def _entries(self) -> dict[str, dict[str, Any]]:
        try:
            entries = self._fs.ls(self._root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        inside = f"{self._root}/"
        names = {entry["name"].rstrip("/"): entry for entry in entries}
        return {name.removeprefix(inside): entry for name, entry in names.items() if name.startswith(inside)}


class WriteStream:
    """A file that is being written, with its size and checksum so far.

    failure: the error of a write that failed, if one did.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._bytes = self._crc32 = 0
        self.failure: Exception | None = None

    @property
    def info(self) -> FileInfo:
        """Size and checksum of the bytes written."""
        return FileInfo(self._bytes, self._crc32)

    def write(self, data: Any) -> int:
        """Append `data`, any buffer."""
        view = memoryview(data)
        try:
            self._crc32 = zlib.crc32(view, self._crc32)
            self._file.write(view)
        except Exception as error:
            self.failure = error
            raise
        self._bytes += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Return how many bytes were written."""
        return self._bytes

    def flush(self) -> None:
        """Do nothing: torch calls it after each tensor, and `Storage.create` flushes at the end."""

    def close(self) -> None:
        """Do nothing: `Storage.create` closes."""


def _open(location: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # here: its import takes as long as the rest of this package

    try:
        fs, root = url_to_fs(location, use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise CheckpointError(f"{location} cannot be reached: {str(error).splitlines()[0]}") from None
    return fs, root.rstrip("/")


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
