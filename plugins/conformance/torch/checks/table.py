"""The table of the checks that need PyTorch's own models."""

from ...checks import Checks

TORCH = Checks()
