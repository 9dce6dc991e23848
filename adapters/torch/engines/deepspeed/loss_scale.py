"""DeepSpeed's dynamic loss scale, in the form that checkpoints of all engines have."""

from __future__ import annotations

from ....checkpoint.manifest import LossScale
from .compat import DynamicScalerView


def read_loss_scale(scaler: DynamicScalerView) -> LossScale:
    """Return the state of DeepSpeed's scaler."""
    return LossScale(
        float(scaler.scale), int(scaler.updates - scaler.last_skipped - 1), hysteresis=int(scaler.hysteresis)
    )


def set_loss_scale(scaler: DynamicScalerView, loaded: LossScale) -> None:
    """Give DeepSpeed's scaler a state, perhaps of another engine."""
    scaler.scale = loaded.scale
    scaler.last_skipped = scaler.updates - loaded.steps - 1
    scaler.hysteresis = scaler.full_hysteresis if loaded.hysteresis is None else loaded.hysteresis
