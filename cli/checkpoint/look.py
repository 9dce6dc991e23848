"""Look at checkpoints without any framework: the manifest, and the files that it names."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...adapters.checkpoint.manifest import DATA, MANIFEST, Manifest, check_file, read_manifest
from ...adapters.checkpoint.storage import Storage
from ...adapters.errors import CheckpointError
from ...adapters.progress import Progress


@dataclass(frozen=True)
class Look:
    """The result of looking at a checkpoint.

    manifest: `None` if it is torn, or of another format.
    problems: what is wrong with it, a line each; none if it is whole.
    """

    location: str
    manifest: Manifest | None
    problems: tuple[str, ...]

    @property
    def whole(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    @property
    def bytes(self) -> int:
        """Size of all its files, from the manifest."""
        return 0 if self.manifest is None else sum(info.bytes for info in self.manifest.files.values())


def look(storage: Storage, verify: bool) -> Look:
    """Compare a checkpoint's files with its manifest: their sizes and, with `verify`, all their bytes."""
    try:
        manifest = read_manifest(storage)
    except CheckpointError as error:
        return Look(storage.location, None, (str(error),))
    folder = storage.folder(manifest.data)
    sizes = folder.sizes()
    problems: list[str] = []
    for name, expected in manifest.files.items():
        if name not in sizes:
            problems.append(f"{folder.place(name)} is missing")
        elif sizes[name] != expected.bytes:
            problems.append(f"{folder.place(name)} is damaged: it has {sizes[name]} bytes, not {expected.bytes}")
        elif verify:
            try:
                check_file(folder, name, expected, folder.info(name))
            except CheckpointError as error:
                problems.append(str(error))
    return Look(storage.location, manifest, tuple(problems))


def look_inside(storage: Storage, verify: bool) -> list[Look]:
    """Look at all checkpoints in a folder, oldest first, after those without a manifest."""
    inside = [storage.folder(name) for name in storage.folders()]
    found = [
        look(folder, verify)
        for folder in inside
        if MANIFEST in folder.sizes() or any(DATA.fullmatch(name) for name in folder.folders())
    ]
    return sorted(found, key=_age)


def newest(looks: list[Look]) -> Look | None:
    """Return the newest whole one, by the rule of `farandole.adapters.latest`."""
    return max((found for found in looks if found.whole), key=_age, default=None)


def describe(found: Look) -> dict[str, Any]:
    """Return a checkpoint's description, as JSON."""
    known: dict[str, Any] = {"path": found.location, "whole": found.whole, "problems": list(found.problems)}
    manifest = found.manifest
    if manifest is None:
        return known
    model = [info for name, info in manifest.tensors.items() if name.startswith("model/")]
    return {
        **known,
        "framework": manifest.framework,
        "strategy": manifest.strategy,
        "world_size": manifest.world_size,
        "saved_at": manifest.saved_at,
        "progress": manifest.progress.as_json(),
        "optimizer": manifest.optimizer,
        "scheduler": manifest.scheduler,
        "extras": sorted(manifest.extras),
        "callbacks": sorted(manifest.callbacks),
        "model_tensors": len(model),
        "model_numel": sum(info.numel for info in model),
        "files": len(manifest.files),
        "bytes": found.bytes,
        "aliases": manifest.aliases,
        "tensors": {name: dataclasses.asdict(info) for name, info in sorted(manifest.tensors.items())},
    }


def _age(found: Look) -> tuple[bool, Progress, str, str]:
    manifest = found.manifest
    if manifest is None:
        return False, Progress(), "", found.location
    return True, manifest.progress, manifest.data, found.location
