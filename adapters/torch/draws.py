"""What a dataset draws at random for a sample, it draws from (seed, epoch, sample).

A sample is then the same whichever worker, or loader process, fetches it, and after a resume.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from ..random_seed import mix


def seed_draws(seed: int, epoch: int, sample: int) -> None:
    """Seed the streams that are drawn from without a generator: Python's, NumPy's and torch's."""
    mixed = mix(seed, epoch, sample)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(mixed)


@contextlib.contextmanager
def streams_kept() -> Iterator[None]:
    """Leave those streams as they were."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.default_generator.set_state(torch_state)
