"""Make a dataset's random numbers depend on (seed, epoch, sample).

A sample is then the same in any worker or loader process, and after a resume.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from ..random_seed import mix


def seed_draws(seed: int, epoch: int, sample: int) -> None:
    """Seed the global random streams: Python's, NumPy's and torch's."""
    mixed = mix(seed, epoch, sample)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(mixed)


@contextlib.contextmanager
def streams_kept() -> Iterator[None]:
    """Restore these streams at the end."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)
