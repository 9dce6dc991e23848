"""The variants trained with Lightning. Framework-free: names and numbers only."""

from __future__ import annotations

from ..variants import GLOBAL_BATCH, Variant
from ..variants import VARIANTS as LOOP_VARIANTS

STRATEGIES = ("horovod", *(f"deepspeed_zero_{kind}" for kind in ("1", "2", "3", "2_offload", "3_offload")))
"""The strategies that the Trainer knows by our names."""

VARIANTS = {
    # Lightning has no weights by tokens. Its step is a number of DataLoader batches, and the last one of an epoch may
    # be short: with 101 samples, the last batch, its shares and the last group of batches are short.
    **{name: variant for name, variant in LOOP_VARIANTS.items() if not variant.tokens},
    "combined": Variant("combined", optimizer="adamw", length=101, accumulate=4, clip_norm=0.5),
}


def batch_size(variant: Variant, workers: int) -> int:
    """Return the DataLoader's batch size on each worker: the largest power of 2 within the global batch."""
    largest = GLOBAL_BATCH // (workers * variant.accumulate)
    return 1 << max(0, largest.bit_length() - 1)
