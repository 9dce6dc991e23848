"""Tests that need a GPU: collected only where PyTorch sees one, and an error if they are asked for elsewhere."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@cache
def sees_a_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run nothing."""
    asked = [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]
    if any(path.is_relative_to(HERE) for path in asked) and not sees_a_gpu():
        raise pytest.UsageError("tests/cuda needs a GPU that PyTorch sees; `farandole doctor` says what is here")


def pytest_ignore_collect() -> bool | None:
    """Leave the modules out; the summary says so."""
    return None if sees_a_gpu() else True
