"""When an engine's error means that another worker is gone, and how that is told in one line."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType

from .errors import WorkerLostError
from .worker import Worker

_LONGEST = 200  # characters of the engine's own words


class NoticesLostWorkers(ABC):
    """What strategies share; an engine overrides `_lost_a_worker`, the one place that knows its errors."""

    @property
    @abstractmethod
    def worker(self) -> Worker: ...

    @contextlib.contextmanager
    def noticing_lost_workers(self) -> Iterator[None]:
        """Raise `WorkerLostError` in the place of the engine's own error where another worker is gone."""
        try:
            yield
        except Exception as error:
            lost = self._as_lost_worker(error)
            if lost is None:
                raise
            raise lost from None

    def _as_lost_worker(self, error: BaseException | None) -> WorkerLostError | None:
        """Return what to raise in the place of an engine's error; `None` where no worker was lost, or that is told."""
        if error is None or isinstance(error, WorkerLostError) or self.worker.world_size == 1:
            return None
        if not self._lost_a_worker(error):
            return None
        words = " ".join(str(error).split()).split(". ")[0][:_LONGEST]
        lost = WorkerLostError(
            f"worker {self.worker.rank} of {self.worker.world_size} lost another worker of the job, which failed, was "
            f"killed or stopped: its own output says why ({type(error).__name__}: {words})"
        )
        return lost.with_traceback(error.__traceback__)

    def _lost_a_worker(self, error: BaseException) -> bool:
        """Whether this error is the engine's way to say that another worker is gone."""
        return False


def gloo_lost_a_peer(text: str) -> bool:
    """Whether an error's text is one of Gloo's about a connection: closed, reset, or silent for too long.

    Engines pass it on in types of their own. Gloo checks with "enforce fail" what workers that are there may get wrong.
    """
    return "gloo/transport/" in text and "enforce fail" not in text


def horovod_lost_a_peer(text: str) -> bool:
    """Whether the text of an error of Horovod's, of either framework, says that a worker left or cannot be reached."""
    return "Horovod has been shut down" in text or gloo_lost_a_peer(text)


def shorten_traceback(error: BaseException) -> None:
    """Leave of an error's traceback the outermost call: the way into the engine does not say why a worker was lost."""
    outermost = error.__traceback__
    if outermost is not None:
        error.__traceback__ = TracebackType(None, outermost.tb_frame, outermost.tb_lasti, outermost.tb_lineno)
