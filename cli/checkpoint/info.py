"""Print what was found in checkpoints."""

from __future__ import annotations

from collections import defaultdict

from rich.console import Console
from rich.text import Text

from ...adapters.checkpoint.manifest import Manifest, TensorInfo, slots_by_parameter
from ...adapters.progress import Progress
from ..console import console, table
from .look import Look, newest

_SHOWN = 20  # tensors, unless all are asked for
_UNITS = ("B", "kB", "MB", "GB", "TB")


def print_one(found: Look, verified: bool, show_all: bool) -> None:
    """Print a checkpoint in detail."""
    out = console()
    looked = "all checksums compared" if verified else "sizes compared; --verify compares checksums"
    state = Text("whole", "green") + Text(f" ({looked})") if found.whole else Text("not whole", "bold red")
    out.print(Text(f"{found.location}: ") + state, soft_wrap=True)
    for problem in found.problems:
        out.print(Text(f"  {problem}"), soft_wrap=True)
    if found.manifest is not None:
        _print_manifest(out, found, found.manifest)
        _print_tensors(out, found.manifest, show_all)


def print_many(looks: list[Look]) -> None:
    """Print a folder of checkpoints, a line each."""
    out = console()
    listed = table("Checkpoint", "State", "Saved", "By", "Progress", "Size")
    latest = newest(looks)
    for found in looks:
        state = Text("whole", "green") if found.whole else Text("not whole", "yellow")
        if found is latest:
            state = Text("latest", "bold green")
        if found.manifest is None:
            listed.add_row(found.location, state)
        else:
            manifest = found.manifest
            progress, size = _progress(manifest.progress), _size(found.bytes)
            listed.add_row(found.location, state, _time(manifest.saved_at), _saver(manifest), progress, size)
    out.print(listed)
    for problem in (problem for found in looks for problem in found.problems):
        out.print(Text(problem), soft_wrap=True)
    if latest is None:
        out.print("None of them can be loaded.", soft_wrap=True)


def _print_manifest(out: Console, found: Look, manifest: Manifest) -> None:
    kinds: dict[str, list[TensorInfo]] = defaultdict(list)
    for name, info in manifest.tensors.items():
        kinds[name.partition("/")[0]].append(info)
    model, slots = kinds["model"], kinds["optimizer"]
    dtypes = ", ".join(sorted({info.dtype for info in model}))
    tied = f", {len(manifest.aliases)} more by another name" if manifest.aliases else ""
    lines = {
        "saved": f"{_time(manifest.saved_at)} by {_saver(manifest)} ({manifest.framework})",
        "progress": _progress(manifest.progress),
        "model": f"{_numel(model):,} numbers (parameters and buffers) in {len(model)} tensors ({dtypes}){tied}",
        "optimizer": f"{manifest.optimizer}, {_numel(slots):,} numbers in {len(slots)} tensors",
        "scheduler": manifest.scheduler,
        "extras": ", ".join(sorted(manifest.extras)) or "none",
        "callbacks": ", ".join(sorted(manifest.callbacks)) or "none",
        "size": f"{_size(found.bytes)} in {len(manifest.files)} files",
    }
    for name, line in lines.items():
        out.print(Text(f"  {name:<10} {line}"), soft_wrap=True)


def _print_tensors(out: Console, manifest: Manifest, show_all: bool) -> None:
    slots = slots_by_parameter(manifest.tensors)
    names = sorted(name.removeprefix("model/") for name in manifest.tensors if name.startswith("model/"))
    listed = table("Tensor", "Shape", "Type", "The optimizer keeps")
    for name in names if show_all else names[:_SHOWN]:
        info = manifest.tensors[f"model/{name}"]
        listed.add_row(name, str(info.shape), info.dtype, ", ".join(slots[name]))
    for alias, first in sorted(manifest.aliases.items()):
        if show_all or len(names) < _SHOWN:
            listed.add_row(alias, f"is {first}")
    out.print()
    out.print(listed)
    if len(names) > _SHOWN and not show_all:
        out.print(f"and {len(names) - _SHOWN} more: --all lists them", soft_wrap=True)


def _saver(manifest: Manifest) -> str:
    return f"{manifest.strategy}, {manifest.world_size} worker{'s' if manifest.world_size != 1 else ''}"


def _progress(progress: Progress) -> str:
    return f"epoch {progress.epoch}, step {progress.step}"


def _time(saved_at: str) -> str:
    return f"{saved_at[:19].replace('T', ' ')} UTC"


def _numel(tensors: list[TensorInfo]) -> int:
    return sum(info.numel for info in tensors)


def _size(count: int) -> str:
    size, unit = float(count), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.1f} {_UNITS[unit]}" if unit else f"{count} B"
