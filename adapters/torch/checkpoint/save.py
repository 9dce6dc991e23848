"""Save a PyTorch training: ranges of tensors by DCP, and objects beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ...checkpoint.manifest import Manifest
from ...checkpoint.save import Save
from ...checkpoint.storage import Storage
from ...progress import Progress
from ...strategy import Strategy
from .state import OBJECTS, State, class_name, objects_of, pack, state_of
from .writer import PartWriter, TensorSlice

if TYPE_CHECKING:
    from ..training import TorchTraining


class TorchSave(Save):
    """One save of a `TorchTraining`."""

    framework = "torch"

    def __init__(self, storage: Storage, training: TorchTraining, strategy: Strategy, keep: int | None) -> None:
        super().__init__(storage, strategy, keep)
        self._training = training
        self._objects = b""

    def begin(self, progress: Progress, extras: Mapping[str, Any] | None) -> tuple[Manifest | None, Mapping[str, Any]]:
        state = state_of(self._training, self._worker.rank, self._worker.world_size)
        self._state: State | None = state
        self._slices: list[TensorSlice] = state.slices
        if not self._worker.is_main:
            return None, state.slots
        callbacks = self._training.callbacks_state()
        optimizer, scheduler = class_name(self._training.optimizer), class_name(self._training.scheduler)
        manifest = self.new_manifest(
            progress, extras, optimizer, scheduler, state.names.aliases, callbacks, self._training.attempt
        )
        manifest = dataclasses.replace(manifest, loss_scale=self._training.engine.loss_scale())
        return manifest, state.slots

    def stage(self, found: list[Mapping[str, Any]], copy: bool) -> None:
        assert self._state is not None
        if self._worker.is_main:
            merged = {name: values for own in found for name, values in own.items()}
            self._objects = pack(objects_of(self._training, self._state.names, merged))
            self._storage.folder(self.manifest.data).make()
        self._state = None
        if copy:
            self._slices = [
                dataclasses.replace(each, values=each.values.detach().to("cpu", copy=True)) for each in self._slices
            ]

    def write(self) -> None:
        writer = PartWriter(self._storage, self.manifest.data, self._worker.rank, self._worker.world_size)
        if self._worker.is_main:
            writer.add_file(OBJECTS, self._objects)
        slices, self._slices = self._slices, []
        writer.write(slices)
        writer.finish()
