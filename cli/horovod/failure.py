"""The error of a build that cannot start or did not finish."""

from __future__ import annotations

from ...adapters.errors import FarandoleError


class HorovodBuildError(FarandoleError, RuntimeError):
    """Horovod could not be fetched, edited, built or installed: the message names the cause and the fix."""
