"""Use torch.distributed.checkpoint in one process."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Drop its warning that it assumes one process: that is what `no_dist` asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield
