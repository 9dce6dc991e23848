"""Save a training, on all its workers, as one commit; or behind its back, while it trains on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, cast

from ...checkpoint.folder import clean, commit, discard
from ...checkpoint.manifest import Manifest, new_data, part_name
from ...checkpoint.storage import Storage
from ...errors import CheckpointError, OptionError
from ...progress import Progress
from ...strategy import Strategy
from .state import OBJECTS, State, class_name, objects_of, pack, state_of
from .together import together
from .writer import PartWriter, Piece

if TYPE_CHECKING:
    from ..training import TorchTraining

_Phase = Literal["written", "committed", "cleaned"]
_PHASES: tuple[_Phase, ...] = ("written", "committed", "cleaned")
_FIRST_POLL, _LAST_POLL = 0.02, 1.0  # seconds


class Saver:
    """Saves one training; of saves that do not wait, one is under way at a time."""

    def __init__(self, strategy: Strategy, training: TorchTraining) -> None:
        self._strategy = strategy
        self._training = training
        self._background: _Background | None = None

    def save(
        self,
        path: str | PathLike[str],
        progress: Progress,
        extras: Mapping[str, Any] | None,
        wait: bool,
        keep: int | None,
    ) -> None:
        """Write a checkpoint; see `Training.save`."""
        if keep is not None and keep < 1:
            raise OptionError(f"keep={keep} must be at least 1, the checkpoint that is being saved")
        self.settle()
        failure = f"cannot save to {path}"
        strategy = self._strategy
        save = _Save(Storage(path), self._training, strategy, keep)
        begun = together(strategy, lambda: save.begin(progress, extras), failure)
        save.manifest = cast(Manifest, begun[0][0])
        try:
            together(strategy, lambda: save.stage([slots for _, slots in begun], copy=not wait), failure)
            if wait:
                together(strategy, save.write, failure)
                together(strategy, save.commit, failure)
        except BaseException:
            save.discard()
            raise
        if wait:
            together(strategy, save.clean, f"saved {path}, but cannot remove older ones")
        else:
            self._background = _Background(save, path)

    def settle(self) -> None:
        """Return once no save is under way; all workers call it.

        Raises:
            CheckpointError: the last save that did not wait has failed, on any worker; raised on all, once.
        """
        background, self._background = self._background, None
        if background is None:
            return
        failure = f"cannot save to {background.path}"
        try:
            together(self._strategy, lambda: background.wait("written"), failure)
        except BaseException:
            background.abandon()
            raise
        together(self._strategy, lambda: background.wait("committed"), failure)
        together(
            self._strategy, lambda: background.wait("cleaned"), f"saved {background.path}, but cannot remove older ones"
        )


class _Save:
    """One save, step by step; each worker does its part of a step, and all go on to the next together."""

    manifest: Manifest

    def __init__(self, storage: Storage, training: TorchTraining, strategy: Strategy, keep: int | None) -> None:
        self._storage = storage
        self._training = training
        self._strategy = strategy
        self._worker = strategy.worker
        self._keep = keep
        self._objects = b""

    def begin(self, progress: Progress, extras: Mapping[str, Any] | None) -> tuple[Manifest | None, Mapping[str, Any]]:
        """Find this worker's share; return the manifest, from worker 0, and the slots that are no ranges."""
        state = state_of(self._training, self._worker.rank, self._worker.world_size)
        self._state: State | None = state
        self._pieces: list[Piece] = state.pieces
        if not self._worker.is_main:
            return None, state.slots
        manifest = Manifest(
            framework="torch",
            strategy=self._strategy.name,
            world_size=self._worker.world_size,
            saved_at="",
            progress=progress,
            extras=json.loads(json.dumps(dict(extras or {}))),  # as a load would return them
            optimizer=class_name(self._training.optimizer),
            scheduler=class_name(self._training.scheduler),
            aliases=state.names.aliases,
            data=new_data(),
            files={},
            tensors={},
        )
        return manifest, state.slots

    def stage(self, slots: list[Mapping[str, Any]], copy: bool) -> None:
        """Hold fast what is saved: the objects and, where training goes on meanwhile, copies of the ranges."""
        assert self._state is not None
        if self._worker.is_main:
            merged = {name: values for part in slots for name, values in part.items()}
            self._objects = pack(objects_of(self._training, self._state.names, merged))
            self._storage.folder(self.manifest.data).make()
        self._state = None
        if copy:
            self._pieces = [
                dataclasses.replace(piece, values=piece.values.detach().to("cpu", copy=True)) for piece in self._pieces
            ]

    def write(self) -> None:
        """Write this worker's part."""
        writer = PartWriter(self._storage, self.manifest.data, self._worker.rank, self._worker.world_size)
        if self._worker.is_main:
            writer.add_file(OBJECTS, self._objects)
        pieces, self._pieces = self._pieces, []
        writer.write(pieces)
        writer.finish()

    def all_written(self) -> bool:
        """Whether every worker has finished its part."""
        there = self._storage.folder(self.manifest.data).sizes()
        return all(part_name(rank) in there for rank in range(self._worker.world_size))

    def commit(self) -> None:
        """Worker 0 makes it the checkpoint of its folder."""
        if self._worker.is_main:
            commit(self._storage, self.manifest)

    def clean(self) -> None:
        """Worker 0 removes what was there before."""
        if self._worker.is_main:
            clean(self._storage, self.manifest.data, self._keep)

    def discard(self) -> None:
        """Worker 0 removes what was written, once nobody writes any more."""
        if self._worker.is_main:
            with contextlib.suppress(Exception):  # the reason to be told is why it is discarded
                discard(self._storage, self.manifest.data)


class _Background:
    """A save in a thread, which takes no part in collectives: worker 0's looks for the others' parts in storage.

    The thread ends with the process: what is not committed then is torn, and never loaded.
    """

    def __init__(self, save: _Save, path: str | PathLike[str]) -> None:
        self.path = path
        self._save = save
        self._abandoned = threading.Event()
        self._done: dict[_Phase, threading.Event] = {phase: threading.Event() for phase in _PHASES}
        self._errors: dict[_Phase, Exception] = {}
        self._thread = threading.Thread(target=self._run, name="farandole-save", daemon=True)
        self._thread.start()

    def wait(self, phase: _Phase) -> None:
        """Return once this worker has come so far, or raise what prevented it."""
        self._done[phase].wait()
        if phase in self._errors:
            raise self._errors[phase]

    def abandon(self) -> None:
        """Stop waiting for parts that will not come, and remove what was written."""
        self._abandoned.set()
        self._thread.join()
        self._save.discard()

    def _run(self) -> None:
        acts: tuple[Callable[[], None], ...] = (self._save.write, self._commit, self._save.clean)
        try:
            for phase, act in zip(_PHASES, acts, strict=True):
                try:
                    act()
                except Exception as error:
                    self._errors[phase] = error
                    return
                self._done[phase].set()
        finally:
            for event in self._done.values():
                event.set()

    def _commit(self) -> None:
        delay = _FIRST_POLL
        while not self._save.all_written():
            if self._abandoned.wait(delay):
                raise CheckpointError("another worker could not write its part")
            delay = min(2 * delay, _LAST_POLL)
        try:
            self._save.commit()
        except Exception:
            self._save.discard()
            raise
