"""Checkpoints as files, for any framework: manifest, storage, and which of several is the newest."""

from .folder import latest

__all__ = ["latest"]
