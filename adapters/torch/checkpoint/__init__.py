"""Portable checkpoints of PyTorch trainings: one layout for all engines, at any number of workers."""

from .load import load
from .reader import CheckpointReader
from .save import TorchSave
from .tools import write_checkpoint

__all__ = ["CheckpointReader", "TorchSave", "load", "write_checkpoint"]
