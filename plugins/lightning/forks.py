"""Warn if a user's DataLoader forks processes from one with an engine's threads, in a Python that may hang then."""

from __future__ import annotations

import platform
import warnings
from typing import Any

from torch.utils.data import DataLoader

from ...adapters import Strategy
from ...adapters.torch.loader_processes import forks_may_hang


def warn_of_forks(dataloader: Any, adapter: Strategy) -> None:
    """Warn, on rank 0. The start method stays the user's choice, because not all data can be pickled."""
    beside_threads = adapter.capabilities.threads and isinstance(dataloader, DataLoader)
    if beside_threads and adapter.worker.is_main and forks_may_hang(dataloader):
        warnings.warn(
            f"this DataLoader forks its {dataloader.num_workers} process(es) beside an engine's threads, and in "
            f"Python {platform.python_version()} one of them may hang, and with it the training "
            "(https://github.com/python/cpython/issues/112275): upgrade to Python 3.11.10 or 3.12, or set "
            "multiprocessing_context='spawn', which needs a dataset that can be pickled, and the script's work "
            "under `if __name__ == '__main__':`",
            stacklevel=3,
        )
