"""Errors that say what is wrong and what to do about it.

Every error of Farandole's own is a `FarandoleError`: one or two lines that name the cause and the fix. The command line
prints the message alone; a script sees an ordinary exception.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FarandoleError(Exception):
    """Base of all errors that a user can fix: the message names the cause and the fix."""


class UnknownStrategyError(FarandoleError, LookupError):
    """No strategy of this name is registered."""


class OptionError(FarandoleError, ValueError):
    """An argument or engine option is unknown, out of range, or contradicts another."""


class EngineUnavailableError(FarandoleError, ImportError):
    """An engine is not installed, or was built without what the strategy needs."""


class LauncherError(FarandoleError, RuntimeError):
    """The environment that a launcher left is incomplete or contradicts itself."""


class StrategyStateError(FarandoleError, RuntimeError):
    """A strategy was used out of order, for example outside its `with` block."""


class DataError(FarandoleError, ValueError):
    """A dataset or batch that allows no exact global mean, or that cannot be sent to loader processes."""


class CheckpointError(FarandoleError, RuntimeError):
    """A checkpoint is missing, torn, or does not fit the model."""


class WorkerLostError(FarandoleError, RuntimeError):
    """Another worker of the job failed, was killed or stopped; its own output says why.

    The engine's own error is the `__context__`.

    why: the cause, if this worker knows it.
    """

    why: str = ""


class CallbackError(FarandoleError, RuntimeError):
    """A callback raised, or returned a wrong value; its own error is the `__cause__`."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"` for the nearest known name, or an empty string if none is near."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" Did you mean {nearest[0]!r}?" if nearest else ""
