"""Read a checkpoint's tensors with torch's distributed checkpoint (DCP), any range of them, into existing memory."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from ...checkpoint.contents import Contents
from ...checkpoint.manifest import Range
from ...errors import CheckpointError
from .dtypes import dtype_of
from .files import Files
from .state import OBJECTS

T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """Flat memory for a range of a tensor, on any device, of any type to which its values convert."""

    tensor: str
    start: int
    values: torch.Tensor


class CheckpointReader(Contents):
    """A whole PyTorch checkpoint, read by one process."""

    framework = "torch"

    @cached_property
    def objects(self) -> dict[str, Any]:
        """Everything but the tensors; see `state.objects_of`."""
        objects: dict[str, Any] = self._decode(OBJECTS, self._unpack)
        return objects

    def read(self, name: str) -> torch.Tensor:
        """Return a whole tensor.

        Raises:
            CheckpointError: there is no tensor of this name.
        """
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"{self.storage.location} has no tensor {name!r}")
        values = torch.empty(info.numel, dtype=dtype_of(info.dtype))
        self.read_into([Target(name, 0, values)])
        return values.view(info.shape)

    def read_into(self, targets: Iterable[Target]) -> None:
        """Read ranges, each file once; no more than one stored range is held at a time.

        Raises:
            CheckpointError: a file is missing, or has other content.
        """
        by_name = {target.tensor: target for target in targets}
        places: dict[MetadataIndex, _Place] = {}
        items: list[ReadItem] = []
        for name, target in by_name.items():
            info, ranges = self.tensors[name], self.ranges.get(name, [])
            chunks = [_chunk(stored.start, stored.length) for stored in ranges]
            properties = TensorProperties(dtype_of(info.dtype))
            stored = TensorStorageMetadata(properties, torch.Size([info.numel]), chunks)
            if target.values.numel():
                chunk = _chunk(target.start, target.values.numel())
                items += create_read_items_for_chunk_list(name, stored, [chunk])
                places |= {MetadataIndex(name, (stored.start,)): _Place(stored) for stored in ranges}
        reader = FileSystemReader(self.manifest.data)
        reader.fs = Files(self.folder)  # type: ignore[assignment]
        reader.set_up_storage_reader(Metadata({}, storage_data=places), is_coordinator=False)
        planner = _Planner(by_name)
        items.sort(key=lambda item: places[item.storage_index].position)
        for file, inside in groupby(items, key=lambda item: places[item.storage_index].relative_path):
            plan = LoadPlan(list(inside))
            self._decode(file, lambda plan=plan: reader.read_data(plan, planner).wait())  # type: ignore[misc]

    def _unpack(self) -> dict[str, Any]:
        with self.folder.open(OBJECTS) as file:
            objects: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        return objects

    def _decode(self, name: str, read: Callable[[], T]) -> T:
        file = self.folder.place(name)
        try:
            return read()
        except (CheckpointError, MemoryError, torch.OutOfMemoryError):
            raise
        except OSError as error:
            raise CheckpointError(f"{file} could not be read: {type(error).__name__}: {error}") from None
        except pickle.UnpicklingError as error:
            # torch's own message explains how to load it with its code: do not pass that on.
            if "GLOBAL" in str(error):
                raise CheckpointError(f"{file} was refused: it contains objects that could run code") from None
            raise CheckpointError(f"{file} is damaged: it is not our state, and could run code") from None
        except Exception as error:
            reason = str(error).splitlines()
            raise CheckpointError(f"{file} is damaged: {reason[0] if reason else type(error).__name__}") from None


class _Place:
    """Where DCP's reader finds a range."""

    transform_descriptors = ()

    def __init__(self, stored: Range) -> None:
        self.relative_path = stored.file
        self.offset = stored.offset
        self.length = stored.bytes

    @property
    def position(self) -> tuple[str, int]:
        return self.relative_path, self.offset


class _Planner(DefaultLoadPlanner):
    """Gives DCP the memory for a range that it has read."""

    def __init__(self, targets: dict[str, Target]) -> None:
        super().__init__()
        self._targets = targets

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self._targets[index.fqn].values


def _chunk(start: int, length: int) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size([start]), torch.Size([length]))
