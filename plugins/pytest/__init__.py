"""Test the contract on your own strategy, in three lines of a test file:

from farandole.plugins.pytest import Conformance

class TestMine(Conformance):
    strategy = "mine"  # as registered under the entry-point group `farandole.strategies`

It proves each promise once; `pytest -p farandole.plugins.pytest.exhaustive --exhaustive` proves it in each combination.
"""

from .suite import Conformance

__all__ = ["Conformance"]
