"""A run's numbers in Comet (https://www.comet.com): the sink, and what sends a folder later."""

from .sink import Comet

__all__ = ["Comet"]
