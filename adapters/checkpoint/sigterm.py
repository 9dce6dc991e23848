"""Delay the end of the process by SIGTERM while a checkpoint is being written.

By default SIGTERM ends a process at once, and the checkpoint is torn without a message. Python's own handlers run in
the main thread, which may be waiting for another worker inside an engine; so a thread learns of the signal through the
wakeup file descriptor (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd). A handler of the user's is
left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_STOP = b"\0"  # no signal has number 0

_installed: SigtermDelay | None = None


def watch(end: Callable[[], None]) -> None:
    """Have SIGTERM call `end()` in a thread and then end the process, unless another handler is set."""
    global _installed
    if _installed is None and _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        with contextlib.suppress(_Taken):
            _installed = SigtermDelay(end)


def unwatch() -> None:
    """Restore the default action of SIGTERM."""
    global _installed
    if _installed is not None and _in_main_thread():
        _installed.stop()
        _installed = None


class SigtermDelay:
    """The handler, and the thread that it wakes. Made and stopped in the main thread."""

    def __init__(self, end: Callable[[], None]) -> None:
        self._end = end
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        if before != -1:  # an event loop's
            signal.set_wakeup_fd(before)
            self._close()
            raise _Taken
        signal.signal(signal.SIGTERM, _note)
        self._thread = threading.Thread(target=self._run, name="farandole-sigterm", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Restore the default; if the signal has already come, wait for the end of the process."""
        if signal.getsignal(signal.SIGTERM) is _note:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        ours = signal.set_wakeup_fd(-1)
        if ours != self._writing:  # somebody else's, put there since
            signal.set_wakeup_fd(ours)
        # Stop the thread by a byte: closing would not, as a forked process may hold the pipe open.
        os.set_blocking(self._writing, True)
        os.write(self._writing, _STOP)
        self._thread.join()
        self._close()

    def forget(self) -> None:
        """Close the copies in a forked process."""
        self._close()

    def _run(self) -> None:
        while True:
            signals = os.read(self._reading, 4096)
            # Python writes a byte for each signal it handles, also if the user has set a handler meanwhile.
            if signal.SIGTERM in signals and signal.getsignal(signal.SIGTERM) is _note:
                try:
                    self._end()
                finally:
                    os._exit(128 + signal.SIGTERM)
            if _STOP[0] in signals:
                return

    def _close(self) -> None:
        os.close(self._reading)
        os.close(self._writing)


class _Taken(Exception):
    """Somebody else listens to the wakeup file descriptor."""


def _note(number: int, frame: FrameType | None) -> None:
    """Do nothing: the thread handles the signal."""


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _hold() -> None:
    """Block the signal between a fork and the child's first steps."""
    if _installed is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _release() -> None:
    if _installed is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _forget_in_child() -> None:
    """Remove the handler in a forked process: it has no thread, and would wake its parent's through the pipe."""
    global _installed
    if _installed is not None:
        signal.set_wakeup_fd(-1)
        if signal.getsignal(signal.SIGTERM) is _note:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _installed.forget()
        _release()
        _installed = None


os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_forget_in_child)
