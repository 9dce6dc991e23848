"""A save in a background thread, while training continues."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from ..errors import CheckpointError
from ..leaving import leave_timeout
from .together import reason_of

Phase = Literal["written", "committed", "cleaned"]
_PHASES: tuple[Phase, ...] = ("written", "committed", "cleaned")
_FIRST_POLL, _LAST_POLL = 0.02, 1.0  # seconds
_LAST_WAIT = 0.5  # seconds


class Steps(Protocol):
    """What is done in the thread; see `save.Save`."""

    @property
    def rank(self) -> int: ...

    def write(self) -> None: ...

    def tell_failure(self, reason: str) -> None: ...

    def unwritten(self) -> list[int]: ...

    def others_write(self) -> bool: ...

    def commit(self) -> None: ...

    def clean(self) -> None: ...

    def discard(self) -> None: ...


class Background:
    """A save in a thread. It calls no collective: worker 0 looks for the others' parts in storage.

    The thread ends with the process: a save that is not committed by then is torn, and never loaded.
    """

    def __init__(self, save: Steps, path: str, data: str) -> None:
        self.path = path
        self.data = data
        self._save = save
        self._abandoned = threading.Event()
        self._done: dict[Phase, threading.Event] = {phase: threading.Event() for phase in _PHASES}
        self._errors: dict[Phase, Exception] = {}
        self._thread = threading.Thread(target=self._run, name="farandole-save", daemon=True)
        self._thread.start()

    def wait(self, phase: Phase) -> None:
        """Return once this worker has finished `phase`, or raise its error."""
        self._done[phase].wait()
        if phase in self._errors:
            raise self._errors[phase]

    def finish(self, deadline: float) -> str | None:
        """Wait for this worker's part, and on worker 0 for the commit; return what went wrong. See `under_way`."""
        is_main = self._save.rank == 0
        in_time = self._done["cleaned" if is_main else "written"].wait(max(0.0, deadline - time.monotonic()))
        if not in_time:
            self._abandoned.set()
            self._thread.join(_LAST_WAIT)  # if it waits for parts, it ends without a commit
        for phase in _PHASES if is_main else _PHASES[:1]:
            if phase in self._errors:
                if phase == "written" and is_main and not self._others_may_write():
                    self._save.discard()
                done = f"saved {self.path}, but cannot remove older ones" if phase == "cleaned" else self._cannot
                return f"{done} (worker {self._save.rank}): {reason_of(self._errors[phase])}"
        if self._done["committed" if is_main else "written"].is_set():
            return None
        return f"{self._cannot} (worker {self._save.rank}): its part was not written within {leave_timeout():g} s"

    def abandon(self) -> None:
        """Stop waiting for parts that will not come, and remove what was written."""
        self._abandoned.set()
        self._thread.join()
        self._save.discard()

    def _others_may_write(self) -> bool:
        try:
            return self._save.others_write()
        except Exception:  # this worker could not write to this storage: report that error instead
            return True

    @property
    def _cannot(self) -> str:
        return f"cannot save to {self.path}"

    def _run(self) -> None:
        acts: tuple[Callable[[], None], ...] = (self._write, self._commit, self._save.clean)
        try:
            for phase, act in zip(_PHASES, acts, strict=True):
                try:
                    act()
                except Exception as error:
                    self._errors[phase] = error
                    return
                self._done[phase].set()
        finally:
            for event in self._done.values():
                event.set()

    def _write(self) -> None:
        try:
            self._save.write()
        except Exception as error:
            with contextlib.suppress(Exception):  # the disk may be full
                self._save.tell_failure(reason_of(error))
            raise

    def _commit(self) -> None:
        delay = _FIRST_POLL
        while missing := self._save.unwritten():
            if self._abandoned.wait(delay):
                raise CheckpointError(f"worker {missing[0]} has not written its part")
            delay = min(2 * delay, _LAST_POLL)
        try:
            self._save.commit()
        except Exception:
            self._save.discard()
            raise
