"""Ordinary Lightning programs, run by one process of stock Lightning and by several of ours, to compare numbers.

A scenario gets a `Setting`, which makes Trainers and DataLoaders, and returns its numbers by name.
"""

from . import by_hand, going_on, optimizing, sharing, unfreezing
from .setting import SCENARIOS, Setting

__all__ = ["SCENARIOS", "Setting", "by_hand", "going_on", "optimizing", "sharing", "unfreezing"]
