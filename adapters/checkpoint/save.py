"""Save a training, on all its workers, as one commit; or behind its back, while it trains on.

What a framework's state consists of, and how it is written, is a `Save` of its own.
"""

from __future__ import annotations

import contextlib
import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any, Literal, cast

from ..errors import CheckpointError, OptionError
from ..progress import Progress
from ..strategy import Strategy
from .folder import clean, commit, discard
from .manifest import Manifest, new_data, part_name
from .storage import Storage
from .together import together

_Phase = Literal["written", "committed", "cleaned"]
_PHASES: tuple[_Phase, ...] = ("written", "committed", "cleaned")
_FIRST_POLL, _LAST_POLL = 0.02, 1.0  # seconds


class Saver:
    """Saves one training; of saves that do not wait, one is under way at a time."""

    def __init__(self, strategy: Strategy, new_save: Callable[[Storage, int | None], Save]) -> None:
        self._strategy = strategy
        self._new_save = new_save
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
        save = self._new_save(Storage(path), keep)
        begun = together(strategy, lambda: save.begin(progress, extras), failure)
        save.manifest = cast(Manifest, begun[0][0])
        try:
            together(strategy, lambda: save.stage([own for _, own in begun], copy=not wait), failure)
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


class Save(ABC):
    """One save, step by step; each worker does its part of a step, and all go on to the next together."""

    framework: str
    manifest: Manifest

    def __init__(self, storage: Storage, strategy: Strategy, keep: int | None) -> None:
        self._storage = storage
        self._strategy = strategy
        self._worker = strategy.worker
        self._keep = keep

    @abstractmethod
    def begin(self, progress: Progress, extras: Mapping[str, Any] | None) -> tuple[Manifest | None, Any]:
        """Find this worker's share; return the manifest, from worker 0, and what worker 0 is to know of the share."""

    @abstractmethod
    def stage(self, found: list[Any], copy: bool) -> None:
        """Hold fast what is saved, with copies where training goes on meanwhile, and make the data folder.

        `found` is what each worker's `begin` returned for worker 0.
        """

    @abstractmethod
    def write(self) -> None:
        """Write this worker's part."""

    def new_manifest(
        self,
        progress: Progress,
        extras: Mapping[str, Any] | None,
        optimizer: str,
        scheduler: str,
        aliases: dict[str, str],
    ) -> Manifest:
        """Return the manifest of this save; what follows from the parts is still to come."""
        return Manifest(
            framework=self.framework,
            strategy=self._strategy.name,
            world_size=self._worker.world_size,
            saved_at="",
            progress=progress,
            extras=json.loads(json.dumps(dict(extras or {}))),  # as a load would return them
            optimizer=optimizer,
            scheduler=scheduler,
            aliases=aliases,
            data=new_data(),
            files={},
            tensors={},
        )

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

    def __init__(self, save: Save, path: str | PathLike[str]) -> None:
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
