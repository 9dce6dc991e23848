"""What a worker is to hold of a training's state, by what its engine shares out."""

from __future__ import annotations

STATE_TOLERANCE = 0.1

# Bytes a parameter that every worker holds, and those that N workers share out, in float32 with Adam.
_HELD_AND_SHARED = {
    "local": (16, 0),
    "ddp": (16, 0),
    "horovod": (16, 0),
    "fsdp": (0, 16),
    "deepspeed_zero_1": (8, 12),  # a copy of the parameters is updated, in float32 too
    "deepspeed_zero_2": (4, 16),
    "deepspeed_zero_3": (0, 20),
}


def expected_state_bytes(strategy: str, workers: int) -> float | None:
    """Return the bytes a parameter for parameters, gradients and optimizer; `None` where it is not known."""
    if strategy not in _HELD_AND_SHARED:
        return None
    held, shared = _HELD_AND_SHARED[strategy]
    return held + shared / workers
