"""Run the contract against a strategy of your own, in three lines of a test file:

from farandole.plugins.pytest import Conformance

class TestMine(Conformance):
    strategy = "mine"  # as registered under the entry-point group `farandole.strategies`
"""

from .suite import Conformance

__all__ = ["Conformance"]
