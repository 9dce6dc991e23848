"""Checkpoints side by side in a folder: commit one, find the furthest whole one, remove old ones.

Which of two is older follows from the run's number of restarts from a checkpoint, then from their positions in the run,
and from clocks only if those are equal: neither a clock that was set back, or another machine's, nor a further
checkpoint of an abandoned attempt must hide a newer one. A folder belongs to one run: of two that begin again from the
same checkpoint the further one wins, and `latest` says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike

from ..errors import CheckpointError
from ..progress import Progress
from . import under_way
from .manifest import (
    DATA,
    MANIFEST,
    Manifest,
    OtherFormat,
    join_parts,
    now,
    part_name,
    read_manifest,
    read_part,
    write_manifest,
)
from .storage import Storage

_log = logging.getLogger("farandole")


@dataclass(frozen=True)
class Saved:
    """A folder with a checkpoint of ours. `manifest` is `None` if it is torn; `begun` sorts by time.

    torn: the name of the newest data folder if its save was never finished, else "".
    """

    storage: Storage
    manifest: Manifest | None
    begun: str
    torn: str

    @property
    def age(self) -> tuple[tuple[int, Progress], str]:
        """Key that sorts whole checkpoints by their position in the run."""
        assert self.manifest is not None
        return (self.manifest.attempt, self.manifest.progress), self.begun


def commit(storage: Storage, manifest: Manifest) -> None:
    """Make a save the checkpoint of its folder, once all `world_size` parts are written.

    `manifest` lacks the time, files and tensors; they are read from the parts.

    Raises:
        CheckpointError: the parts do not make up whole tensors.
    """
    parts = [read_part(storage, manifest.data, rank) for rank in range(manifest.world_size)]
    tensors, _ = join_parts(part for part, _ in parts)
    files = {part_name(rank): info for rank, (_, info) in enumerate(parts)}
    for part, _ in parts:
        files |= part.files
    write_manifest(storage, dataclasses.replace(manifest, saved_at=now(), files=files, tensors=tensors))


def discard(storage: Storage, data: str) -> None:
    """Remove the data of a save that failed, unless it was committed after all."""
    try:
        committed = read_manifest(storage).data
    except CheckpointError:
        committed = ""
    if data != committed:
        storage.remove_folder(data)


def clean(storage: Storage, data: str, keep: int | None) -> None:
    """Remove earlier saves: other data folders than `data`, and whole checkpoints beside this one beyond `keep`."""
    for name in storage.folders():
        if DATA.fullmatch(name) and name != data:
            storage.remove_folder(name)
    if keep is not None:
        prune(storage, keep)


def latest(folder: str | PathLike[str]) -> str | None:
    """Return the whole checkpoint in a folder that is furthest in its run; `None` where there is none.

    It may be the folder itself. Of several at the same position, the newest is returned.

    Torn ones are skipped: those without a manifest, or with files that are missing or of other sizes. (`load` also
    compares checksums.) A warning names those that are newer than the one returned. The folder may be any that fsspec
    reaches.

    Raises:
        CheckpointError: one of them has a format newer or older than this version's.
    """
    storage = Storage(folder)
    inspected = (_inspect(place) for place in (storage, *map(storage.folder, storage.folders())))
    found = [saved for saved in inspected if saved is not None]
    whole = [saved for saved in found if saved.manifest is not None]
    newest = max(whole, key=lambda saved: saved.age, default=None)
    last = max(whole, key=lambda saved: saved.begun, default=None)
    if newest is not None and last is not None and _is_further(newest, last):
        _log.warning(
            "%s is loaded, %s; %s was saved after it, %s. If the run began again from an earlier one, remove the "
            "further ones, or pass the path yourself",
            newest.storage.location,
            newest.age[0][1],
            last.storage.location,
            last.age[0][1],
        )
    for saved in found:
        if newest is None or saved.torn > newest.begun:
            _say_torn(saved, newest)
    return None if newest is None else newest.storage.location


def _is_further(one: Saved, other: Saved) -> bool:
    """Whether one is further than the other of the same attempt: the two may belong to different runs."""
    (attempt, progress), _ = one.age
    (other_attempt, other_progress), _ = other.age
    return attempt == other_attempt and progress > other_progress


def manifest_to_load(storage: Storage) -> Manifest:
    """Return the manifest in a folder; warn if a later save to it was never finished.

    Its `attempt` is the largest of the checkpoints beside it: what is saved from now on comes after all of them.

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    manifest = read_manifest(storage)
    torn = _newest_data(storage)
    if torn is not None and torn > manifest.data:
        own = Saved(storage, manifest, manifest.data, torn)
        _say_torn(own, own)
    return dataclasses.replace(manifest, attempt=max([manifest.attempt, *_attempts_beside(storage)]))


def _attempts_beside(storage: Storage) -> Iterator[int]:
    parent = storage.parent()
    if parent is not None:
        for name in parent.folders():
            with contextlib.suppress(CheckpointError):  # torn ones, and folders of others
                yield read_manifest(parent.folder(name)).attempt


def _say_torn(saved: Saved, taken: Saved | None) -> None:
    if under_way.is_under_way(saved.torn):
        return
    place = saved.storage.place(saved.torn) if saved is taken else saved.storage.location
    what = "there is no whole checkpoint before it"
    if taken is not None and taken.manifest is not None:
        what = f"the one before it is loaded: {taken.storage.location}, {taken.manifest.progress}"
    _log.warning("%s is torn, its save was not finished; %s", place, what)


def prune(storage: Storage, keep: int) -> None:
    """Remove older checkpoints beside a newly saved one, so that `keep` whole ones are left; remove torn ones too.

    Checkpoints further in the run, and files that are not ours, are left alone.
    """
    parent = storage.parent()
    own = _inspect(storage)
    if parent is None or own is None or own.manifest is None:
        return
    beside = [*_beside(parent, storage.name)]
    older = (saved for saved in beside if saved.manifest is not None and saved.age < own.age)
    whole = sorted(older, key=lambda saved: saved.age)
    torn = [saved for saved in beside if saved.manifest is None and saved.begun < own.begun]
    for saved in whole[: max(0, len(whole) - (keep - 1))] + torn:
        _remove(parent, saved.storage)


def _beside(parent: Storage, name: str) -> Iterator[Saved]:
    for other in parent.folders():
        with contextlib.suppress(OtherFormat):
            if other != name and (saved := _inspect(parent.folder(other))) is not None:
                yield saved


def _inspect(storage: Storage) -> Saved | None:
    """Return what is in a folder; `None` if none of it is ours."""
    newest = _newest_data(storage)
    try:
        manifest = read_manifest(storage)
    except OtherFormat:
        raise
    except CheckpointError:
        return None if newest is None else Saved(storage, None, newest, newest)
    sizes = storage.folder(manifest.data).sizes()
    whole = all(sizes.get(name) == info.bytes for name, info in manifest.files.items())
    torn = newest if newest is not None and newest > manifest.data else "" if whole else manifest.data
    return Saved(storage, manifest if whole else None, manifest.data, torn)


def _newest_data(storage: Storage) -> str | None:
    return max((name for name in storage.folders() if DATA.fullmatch(name)), default=None)


def _remove(parent: Storage, storage: Storage) -> None:
    storage.remove(MANIFEST)  # first: from now on it is torn, and never loaded
    for name in storage.folders():
        if DATA.fullmatch(name):
            storage.remove_folder(name)
    if not storage.folders() and not storage.sizes():
        parent.remove_folder(storage.name)
