"""Recognize engine errors that mean a lost worker, and say so in one line."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType

from .errors import WorkerLostError
from .worker import Worker

# What Gloo says in all calls after one that timed out (gloo/transport/tcp/unbound_buffer.cc).
_AFTER_A_TIMEOUT = "Application timeout caused pair closure"
_LONGEST = 200  # characters of the engine's own words


class NoticesLostWorkers(ABC):
    """Base of strategies; an engine overrides `_lost_a_worker`, the one place that knows its errors."""

    @property
    @abstractmethod
    def worker(self) -> Worker: ...

    @contextlib.contextmanager
    def noticing_lost_workers(self) -> Iterator[None]:
        """Raise `WorkerLostError` in place of an engine's error that means a lost worker."""
        try:
            yield
        except Exception as error:
            lost = self._as_lost_worker(error)
            if lost is None:
                raise
            raise lost from None

    def _as_lost_worker(self, error: BaseException | None) -> WorkerLostError | None:
        """Return the error to raise in place of an engine's; `None` if no worker was lost, or `error` says so."""
        if error is None or isinstance(error, WorkerLostError) or self.worker.world_size == 1:
            return None
        if not self._lost_a_worker(error):
            return None
        words = " ".join(str(error).split()).split(". ")[0][:_LONGEST]
        why = self._why_lost()
        lost = WorkerLostError(
            f"worker {self.worker.rank} of {self.worker.world_size} lost another worker of the job"
            f"{f': {why}' if why else ', which failed, was killed or stopped: its own output says why'} "
            f"({type(error).__name__}: {words})"
        )
        lost.why = why
        return lost.with_traceback(error.__traceback__)

    def _lost_a_worker(self, error: BaseException) -> bool:
        """Whether this engine error means that another worker is lost."""
        return False

    def _why_lost(self) -> str:
        """Return why the workers did not meet, if this one knows; it is asked after an error."""
        return ""


def gloo_lost_a_peer(text: str) -> bool:
    """Whether an error's text is Gloo's about a connection that was closed, reset, or silent for too long.

    Engines wrap it in their own types. Texts with "enforce fail" are Gloo's checks of arguments, not lost workers.
    """
    return ("gloo/transport/" in text and "enforce fail" not in text) or _AFTER_A_TIMEOUT in text


def horovod_lost_a_peer(text: str) -> bool:
    """Whether the text of a Horovod error, of either framework, means that a worker left or cannot be reached."""
    return "Horovod has been shut down" in text or gloo_lost_a_peer(text)


def shorten_traceback(error: BaseException) -> None:
    """Keep only the outermost call of a traceback: the engine's inner calls do not say why a worker was lost."""
    outermost = error.__traceback__
    if outermost is not None:
        error.__traceback__ = TracebackType(None, outermost.tb_frame, outermost.tb_lasti, outermost.tb_lineno)
