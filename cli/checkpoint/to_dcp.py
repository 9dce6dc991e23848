"""Write a model's state in the format of torch.distributed.checkpoint (DCP), with its own `.metadata`."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import MetadataIndex
from torch.distributed.checkpoint.state_dict_saver import save

from ...adapters.torch.checkpoint import CheckpointReader
from ...adapters.torch.checkpoint.dtypes import dtype_of
from .model_state import ModelState
from .one_process import alone
from .places import new_place


def write_dcp(path: str, out: str) -> int:
    """Write the folder, one tensor in memory at a time, and return its number of entries.

    Raises:
        CheckpointError: the checkpoint is missing, torn or damaged; or `out` exists.
    """
    state = ModelState(CheckpointReader(path))
    entries: dict[str, Any] = dict(state.others)
    for name in state.names:
        info = state.info(name)
        entries[name] = torch.empty(info.shape, dtype=dtype_of(info.dtype), device="meta")
    with new_place(out) as place:
        writer = FileSystemWriter(place, single_file_per_rank=True, thread_count=1)
        with alone():
            save(entries, storage_writer=writer, planner=_Planner(state), no_dist=True)
    return len(entries)


class _Planner(DefaultSavePlanner):
    """Reads a tensor when DCP is about to write it."""

    def __init__(self, state: ModelState) -> None:
        super().__init__()
        self._state = state
        self._names = frozenset(state.names)

    def lookup_object(self, index: MetadataIndex) -> Any:
        return self._state.read(index.fqn) if index.fqn in self._names else super().lookup_object(index)
