"""A checkpoint's data folder, as a file system for torch's distributed checkpoint (DCP)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemBase

from ...checkpoint.storage import FileInfo, Storage


class Files(FileSystemBase):
    """A storage's folder for DCP's writer and reader; a path is a file name in it.

    written: sizes and checksums of the written files.
    """

    def __init__(self, folder: Storage) -> None:
        self._folder = folder
        self.written: dict[str, FileInfo] = {}

    @contextlib.contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        name = os.fspath(path)
        if mode == "rb":
            with self._folder.open(name) as file:
                yield file
        else:
            with self._folder.create(name) as stream:
                yield stream
            self.written[name] = stream.info

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        return suffix

    def init_path(self, path: str | os.PathLike[str]) -> str:
        return os.fspath(path)

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        raise NotImplementedError

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        raise NotImplementedError

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True

    def exists(self, path: str | os.PathLike[str]) -> bool:
        raise NotImplementedError

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        raise NotImplementedError
