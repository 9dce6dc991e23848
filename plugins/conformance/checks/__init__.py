"""What the contract asks of a strategy beside its curve, one function a promise, run inside a job by every worker.

A check raises `AssertionError` where the promise is broken. All workers run all checks in the same order; a check must
leave the job usable for the next. Paths given to checks are shared by the workers of the job.

These are the checks of all frameworks; `torch.checks` and `tensorflow.checks` have those that need their own models.
"""

from . import job, state, steps
from .common import SHARED, Checks

__all__ = ["SHARED", "Checks", "job", "state", "steps"]
