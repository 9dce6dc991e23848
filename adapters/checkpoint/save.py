"""Save a training, on all its workers, as one commit; or in the background, while training continues.

A subclass of `Save` for each framework knows its state, and how to write it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from os import PathLike
from types import TracebackType
from typing import Any, cast

from ..errors import CheckpointError, OptionError
from ..progress import Progress
from ..strategy import Strategy
from . import under_way
from .background import Background
from .folder import clean, commit, discard
from .manifest import Manifest, failure_name, new_data, part_name
from .storage import Storage
from .together import together


class Saver:
    """Saves one training; only one background save runs at a time."""

    def __init__(self, strategy: Strategy, new_save: Callable[[Storage, int | None], Save]) -> None:
        self._strategy = strategy
        self._new_save = new_save
        self._background: Background | None = None

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
        with _Foreground(os.fspath(path), save.manifest.data):
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
                self._background = Background(save, os.fspath(path), save.manifest.data)
                under_way.add(self._background)

    def settle(self) -> None:
        """Wait for the background save, if there is one; all workers call it.

        Raises:
            CheckpointError: the last background save failed on any worker; raised on all workers, once.
        """
        background, self._background = self._background, None
        if background is None:
            return
        failure = f"cannot save to {background.path}"
        try:
            try:
                together(self._strategy, lambda: background.wait("written"), failure)
            except CheckpointError:
                background.abandon()
                raise
            together(self._strategy, lambda: background.wait("committed"), failure)
            cleaning = f"saved {background.path}, but cannot remove older ones"
            together(self._strategy, lambda: background.wait("cleaned"), cleaning)
        except CheckpointError:
            under_way.remove(background)
            raise
        under_way.remove(background)


class Save(ABC):
    """One save, step by step; all workers finish a step before the next begins."""

    framework: str
    manifest: Manifest

    def __init__(self, storage: Storage, strategy: Strategy, keep: int | None) -> None:
        self._storage = storage
        self._strategy = strategy
        self._worker = strategy.worker
        self._keep = keep

    @abstractmethod
    def begin(self, progress: Progress, extras: Mapping[str, Any] | None) -> tuple[Manifest | None, Any]:
        """Find what this worker writes; return the manifest, from worker 0, and what worker 0 must know about it."""

    @abstractmethod
    def stage(self, found: list[Any], copy: bool) -> None:
        """Keep what is saved, as copies if training continues meanwhile, and make the data folder.

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
        callbacks: dict[str, dict[str, Any]],
        attempt: int,
    ) -> Manifest:
        """Return the manifest of this save; `commit` adds what it reads from the parts."""
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
            callbacks=callbacks,
            attempt=attempt,
        )

    @property
    def rank(self) -> int:
        """This worker's rank."""
        return self._worker.rank

    def tell_failure(self, reason: str) -> None:
        """Leave a note in storage that this worker cannot write its part."""
        self._storage.folder(self.manifest.data).put(failure_name(self.rank), reason.encode())

    def unwritten(self) -> list[int]:
        """Return the workers whose parts are not finished.

        Raises:
            CheckpointError: one of them has left a note that it failed.
        """
        folder = self._storage.folder(self.manifest.data)
        there = folder.sizes()
        missing = [rank for rank in range(self._worker.world_size) if part_name(rank) not in there]
        for rank in missing:
            if failure_name(rank) in there:
                reason = folder.read(failure_name(rank)).decode(errors="replace")
                raise CheckpointError(f"worker {rank} could not write its part: {reason}")
        return missing

    def others_write(self) -> bool:
        """Whether another worker may still be writing its part."""
        there = self._storage.folder(self.manifest.data).sizes()
        others = (rank for rank in range(self._worker.world_size) if rank != self.rank)
        return any(part_name(rank) not in there and failure_name(rank) not in there for rank in others)

    def commit(self) -> None:
        """Worker 0 makes it the checkpoint of its folder."""
        if self._worker.is_main:
            commit(self._storage, self.manifest)

    def clean(self) -> None:
        """Worker 0 removes the earlier saves."""
        if self._worker.is_main:
            clean(self._storage, self.manifest.data, self._keep)

    def discard(self) -> None:
        """Worker 0 removes what was written, once no worker writes any more."""
        if self._worker.is_main:
            with contextlib.suppress(Exception):  # report the error that made it discard, not this one
                discard(self._storage, self.manifest.data)


class _Foreground:
    """A save that its caller waits for, as the SIGTERM handler sees it. A context manager."""

    def __init__(self, path: str, data: str) -> None:
        self.path = path
        self.data = data
        self._ended = threading.Event()
        self._error: BaseException | None = None

    def finish(self, deadline: float) -> str | None:
        """Wait for the main thread to save it; see `under_way`."""
        if not self._ended.wait(max(0.0, deadline - time.monotonic())):
            return f"cannot save to {self.path}: it was not written in time"
        return None if self._error is None else str(self._error)

    def __enter__(self) -> None:
        under_way.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._error = error
        self._ended.set()
        under_way.remove(self)
