"""Write slices of tensors with torch's distributed checkpoint (DCP), into the files of one worker's part."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from typing import cast

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType
from torch.serialization import get_crc32_options, set_crc32_options

from ...checkpoint.manifest import Part, Range, Ranges, TensorInfo, write_part
from ...checkpoint.storage import FileInfo, Storage
from .dtypes import dtype_name
from .files import Files

# DCP keeps what it has copied (from a GPU, say) until the file is closed, and reads a stored range as a whole: this
# limits both. Larger slices are split.
_FILE_BYTES = 32 << 20
_FILES_AT_ONCE = 2  # one is written while another waits for the disk

_Written = tuple[list[tuple[str, Range]], dict[str, FileInfo]]


@dataclass(frozen=True)
class TensorSlice:
    """The values of a tensor's range, to be written.

    tensor: the whole tensor's name.
    shape: its shape.
    start: index of the first element in the flattened tensor.
    values: the elements, flat, in any memory.
    """

    tensor: str
    shape: tuple[int, ...]
    start: int
    values: torch.Tensor


class PartWriter:
    """Writes one worker's part of a checkpoint into an existing data folder."""

    def __init__(self, storage: Storage, data: str, rank: int, world_size: int) -> None:
        self._storage = storage
        self._data = data
        self._rank = rank
        self._world_size = world_size
        self._tensors: dict[str, TensorInfo] = {}
        self._ranges: Ranges = {}
        self._files: dict[str, FileInfo] = {}
        self._number = rank

    def add_file(self, name: str, content: bytes) -> None:
        """Write a file beside those of tensors."""
        with self._storage.folder(self._data).create(name) as stream:
            stream.write(content)
        self._files[name] = stream.info

    def write(self, slices: Iterable[TensorSlice]) -> None:
        """Write slices as they come, two files at a time; none is kept longer than its file takes."""
        running: deque[Future[_Written]] = deque()
        with _without_torchs_checksums(), ThreadPoolExecutor(_FILES_AT_ONCE, "farandole-write") as pool:
            for batch in self._batches(slices):
                if len(running) == _FILES_AT_ONCE:
                    self._note(running.popleft().result())
                running.append(pool.submit(copy_context().run, self._write, self._number, batch))
                self._number += self._world_size
                del batch
            while running:
                self._note(running.popleft().result())

    def finish(self) -> None:
        """Write the list of ranges, which completes this worker's part."""
        write_part(self._storage, self._data, self._rank, Part(self._tensors, self._ranges, self._files))

    def _batches(self, slices: Iterable[TensorSlice]) -> Iterator[list[TensorSlice]]:
        """Yield the slices for each file."""
        batch: list[TensorSlice] = []
        size = 0
        for whole in slices:
            # A worker without elements of a tensor may not know its type; worker 0 writes tensors without elements.
            if whole.values.numel() or (0 in whole.shape and self._rank == 0):
                self._tensors[whole.tensor] = TensorInfo(tuple(whole.shape), dtype_name(whole.values.dtype))
            for each in _split(whole):
                if batch and size + each.values.nbytes > _FILE_BYTES:
                    yield batch
                    batch, size = [], 0
                batch.append(each)
                size += each.values.nbytes
        if batch:
            yield batch

    def _write(self, number: int, slices: list[TensorSlice]) -> _Written:
        files = Files(self._storage.folder(self._data))
        writer = FileSystemWriter(self._data, sync_files=False)  # `Storage.create` does that
        writer.fs = files  # type: ignore[assignment]
        plan = SavePlan([_item(each) for each in slices])
        plan = writer.prepare_global_plan([SavePlan([])] * number + [plan])[number]
        results = writer.write_data(plan, _Planner(slices)).wait()
        lengths = {(each.tensor, each.start): each.values.numel() for each in slices}
        ranges: list[tuple[str, Range]] = []
        for result in results:
            name, stored = result.index.fqn, result.storage_data
            (start,) = cast(torch.Size, result.index.offset)
            length = lengths[name, start]
            ranges.append((name, Range(start, length, stored.relative_path, stored.offset, stored.length)))
        return ranges, files.written

    def _note(self, written: _Written) -> None:
        ranges, files = written
        for name, stored in ranges:
            self._ranges.setdefault(name, []).append(stored)
        self._files |= files


class _Planner(DefaultSavePlanner):
    """Gives DCP the values of a slice when it is about to write them."""

    def __init__(self, slices: list[TensorSlice]) -> None:
        super().__init__()
        self._values = {(each.tensor, each.start): each.values for each in slices}

    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        assert index.offset is not None
        return _alone(self._values[index.fqn, index.offset[0]])


@contextlib.contextmanager
def _without_torchs_checksums() -> Iterator[None]:
    """Disable torch.save's checksums: they would cost as much again as ours of whole files."""
    before = get_crc32_options()
    set_crc32_options(False)
    try:
        yield
    finally:
        set_crc32_options(before)


def _split(whole: TensorSlice) -> Iterator[TensorSlice]:
    step = max(1, _FILE_BYTES // whole.values.element_size())
    for begin in range(0, whole.values.numel(), step):
        yield TensorSlice(whole.tensor, whole.shape, whole.start + begin, whole.values[begin : begin + step])


def _item(own: TensorSlice) -> WriteItem:
    start, length = torch.Size([own.start]), torch.Size([own.values.numel()])
    data = TensorWriteData(ChunkStorageMetadata(start, length), TensorProperties(own.values.dtype), length)
    return WriteItem(MetadataIndex(own.tensor, start), WriteItemType.SHARD, tensor_data=data)


def _alone(values: torch.Tensor) -> torch.Tensor:
    """Return the same memory as its own storage: DCP copies a view of a larger one."""
    values = values.detach().reshape(-1)
    if values.device.type != "cpu":
        return values
    return torch.from_numpy(values.view(torch.uint8).numpy()).view(values.dtype)
