"""The undocumented name of PyTorch that counting activations uses. Its notes on extending PyTorch mention it."""

from __future__ import annotations

from typing import Any

from ....adapters.torch.compat import TORCH

DispatchMode: Any = TORCH.load("torch.utils._python_dispatch", "TorchDispatchMode")
"""Sees every operator that is executed inside, with its results (utils/_python_dispatch.py)."""
