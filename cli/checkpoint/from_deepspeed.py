"""Convert a checkpoint that DeepSpeed's ZeRO wrote, at stage 1, 2 or 3. Its files are pickles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ...adapters.errors import OptionError
from ...adapters.progress import Progress
from ...adapters.torch.checkpoint import write_checkpoint
from .places import tag_folder
from .zero_files import ZeroFiles

_OPTIMIZERS = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adagrad,
    torch.optim.RMSprop,
)


def convert_deepspeed(
    path: str, out: str, optimizer: str | None, scheduler: str | None, progress: tuple[int, int] | None
) -> list[str]:
    """Write it as a checkpoint of ours, and return lines for the user.

    Args:
        optimizer: its class, if it cannot be found from its settings.
        scheduler: its class, if it has a state; "none" leaves the state out.
        progress: its position; DeepSpeed counts steps, but not epochs.

    Raises:
        CheckpointError, OptionError: it cannot be read, or an argument is missing that the files do not answer.
    """
    files = ZeroFiles(tag_folder(path))
    groups = files.groups()
    optimizer_name = optimizer or _optimizer_of(path, groups)
    scheduler_name, scheduler_state = _scheduler_of(path, files.scheduler, scheduler)
    known: dict[str, Any] = files.client_state
    at = Progress(*progress) if progress else Progress(**known.get("progress", {}))
    objects = {
        "groups": groups,
        "slots": files.scalar_slots(),
        "scheduler": scheduler_state,
        "model": files.others,
        "frozen": files.frozen,
    }
    write_checkpoint(
        out,
        _tensors(files),
        objects,
        progress=at,
        strategy="deepspeed",
        optimizer=optimizer_name,
        scheduler=scheduler_name,
        extras=known.get("extras"),
        aliases=files.aliases,
        callbacks=known.get("callbacks"),
    )
    lines = [f"{out}: optimizer {optimizer_name}, scheduler {scheduler_name}, after {files.steps} steps"]
    if not progress and not known:
        lines.append("DeepSpeed does not save the position in the data: it resumes at the first step of epoch 0.")
        lines.append("Give --progress EPOCH STEP, or start batches() where you want.")
    return lines


def _tensors(files: ZeroFiles) -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in files.weights():
        if name not in files.aliases:
            yield f"model/{name}", value
    for slot in files.flat_slots():
        for name, value in files.slot(slot):
            yield f"optimizer/{name}/{slot}", value


def _optimizer_of(path: str, groups: list[dict[str, Any]]) -> str:
    """Return torch's class whose groups have exactly these settings."""
    settings = set().union(*groups) - {"params", "initial_lr"}
    for optimizer_class in _OPTIMIZERS:
        made = optimizer_class([torch.zeros(1, requires_grad=True)])
        defaults: Mapping[str, Any] = made.defaults
        decoupled = "decoupled_weight_decay"  # the only difference between Adam and AdamW
        if defaults.keys() == settings and defaults.get(decoupled) == groups[0].get(decoupled):
            return optimizer_class.__name__
    raise OptionError(
        f"{path} does not name its optimizer's class, and no class of torch has its settings: "
        "name the one that you will load it with: --optimizer CLASS"
    )


def _scheduler_of(path: str, state: Any, name: str | None) -> tuple[str, Any]:
    if state is None:
        if name not in (None, "none"):
            raise OptionError(f"--scheduler {name}: {path} holds no scheduler's state")
        return "none", None
    if name is None:
        raise OptionError(
            f"{path} holds a scheduler's state, but not its class: name it with --scheduler, "
            "or leave the state out with --scheduler none"
        )
    return (name, None) if name == "none" else (name, state)
