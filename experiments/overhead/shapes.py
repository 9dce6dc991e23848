"""The models of `overhead`: stacks of equal layers, from mostly overhead to mostly arithmetic."""

from __future__ import annotations

from dataclasses import dataclass

LEARNING_RATE, MOMENTUM = 1e-3, 0.9


@dataclass(frozen=True)
class Shape:
    """`layers` linear layers of `width`, trained on `batch` samples per worker."""

    layers: int
    width: int
    batch: int


SHAPES = {
    "small": Shape(layers=5, width=64, batch=64),  # 0.02 million parameters
    "medium": Shape(layers=8, width=512, batch=64),  # 2.1 million
    "large": Shape(layers=10, width=1024, batch=256),  # 10.5 million
}
