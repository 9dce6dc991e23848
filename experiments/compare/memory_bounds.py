"""The expected bytes of a training's state on one worker, by what its engine shards."""

from __future__ import annotations

STATE_TOLERANCE = 0.1

# Bytes per parameter that are replicated, and those that are sharded, in float32 with Adam.
_REPLICATED_AND_SHARDED = {
    "local": (16, 0),
    "ddp": (16, 0),
    "horovod": (16, 0),
    "fsdp": (0, 16),
    "deepspeed_zero_1": (8, 12),  # a copy of the parameters is updated, in float32 too
    "deepspeed_zero_2": (4, 16),
    "deepspeed_zero_3": (0, 20),
}


def expected_state_bytes(strategy: str, workers: int) -> float | None:
    """Return the bytes per parameter for parameters, gradients and optimizer; `None` if unknown."""
    if strategy not in _REPLICATED_AND_SHARDED:
        return None
    replicated, sharded = _REPLICATED_AND_SHARDED[strategy]
    return replicated + sharded / workers
