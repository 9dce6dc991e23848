"""Use torch.distributed.checkpoint in one process."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Silence its warning that it assumes one process: `no_dist` asks for that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)
        yield
