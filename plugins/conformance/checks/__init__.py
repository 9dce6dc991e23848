"""The contract beside the curve: one function per promise, run inside a job by every worker.

A check raises `AssertionError` if the promise is broken. All workers run all checks in the same order; a check must
leave the job usable for the next one. All workers of the job get the same paths.

These are the checks of all frameworks; `torch.checks` and `tensorflow.checks` have those that need their own models.
"""

from . import job, state, steps
from .common import SHARED, Checks

__all__ = ["SHARED", "Checks", "job", "state", "steps"]
