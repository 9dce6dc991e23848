"""Where Lightning's training loop is in its epoch, and how to move it."""

from __future__ import annotations

from typing import Any

_KEY = "farandole"


class TrainingPosition:
    """The number of batches of this epoch that were trained on, by the counters of Lightning's fit loop.

    It is the counter `processed`, which is raised before the hook that writes checkpoints.
    """

    def __init__(self, fit_loop: Any) -> None:
        self._fit_loop = fit_loop

    @property
    def batches(self) -> int:
        return int(self._fit_loop.epoch_loop.batch_progress.current.processed)

    def is_resumed(self) -> bool:
        """Whether a checkpoint put it in the middle of an epoch."""
        return self._fit_loop.restarting and self._is_inside()

    def move(self, batches: int) -> None:
        """Continue to count from `batches`, if batches had another size when the checkpoint was written."""
        current = self._fit_loop.epoch_loop.batch_progress.current
        difference = batches - self.batches
        if self._is_inside():
            for counter in ("ready", "started", "processed", "completed"):
                setattr(current, counter, getattr(current, counter) + difference)

    def _is_inside(self) -> bool:
        progress = self._fit_loop.epoch_loop.batch_progress
        return progress.current.processed > 0 and not progress.is_last_batch


def take_out_position(checkpoint: dict[str, Any]) -> None:
    """Move our loaders' state out of Lightning's place, because Lightning without our loaders refuses to load it."""
    state = checkpoint["loops"]["fit_loop"]["state_dict"]
    loaders = state.get("combined_loader", ())
    if loaders and all("samples" in loader for loader in loaders):
        checkpoint.setdefault(_KEY, {})["combined_loader"] = state.pop("combined_loader")


def put_back_position(checkpoint: dict[str, Any]) -> None:
    """Undo `take_out_position`."""
    loop = checkpoint.get("loops", {}).get("fit_loop")
    kept = checkpoint.get(_KEY, {}).get("combined_loader")
    if not loop or not kept:
        return
    loop["state_dict"]["combined_loader"] = kept
    inside = any(loader["samples"] < loader["length"] for loader in kept)
    if inside and not loop["epoch_loop.batch_progress"]["is_last_batch"]:
        # For example stopped by max_steps: Lightning counts the epoch as done, and would skip the rest of it.
        for counters in loop["epoch_progress"].values():
            counters["processed"] = counters["completed"] = counters["started"] - 1
