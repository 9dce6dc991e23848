"""Run commands: short ones for their output, long ones in a process group that is ended as a whole."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

_GRACE = 3.0  # seconds between asking the processes to end and killing them

# Leads the process group of a watched command: if we are killed, its standard input ends, and it ends the group.
_LEADER = """
import os, signal, subprocess, sys, threading
def end_with_parent():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.exit(subprocess.call(sys.argv[1:], stdin=subprocess.DEVNULL))
"""


def capture(*command: str, cwd: Path | None = None, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
    """Run a short command and return its exit code and output; `timeout` is in seconds."""
    return subprocess.run(
        command,
        cwd=cwd,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )


def watch(command: Sequence[str], *, env: Mapping[str, str], cwd: Path, line: Callable[[str], None]) -> int:
    """Run `command` in a process group of its own, pass each line of its output to `line`, return its exit code.

    Whatever ends this call early (Ctrl-C, an error in `line`, a signal under `stop_on_signals`) ends the whole group
    first, and so does the death of this process.
    """
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _LEADER, *command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            for text in process.stdout:
                line(text.rstrip("\n"))
            return process.wait()
        except BaseException:
            _end_group(process)
            raise


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a process and its descendants, and wait until they are gone; a second Ctrl-C does not interrupt this."""
    with contextlib.suppress(ValueError):  # not the main thread, which gets no signals
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    _send(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
    _send(process, signal.SIGKILL)
    # Its output ends with the last process that has it open. (The group itself may keep zombies.)
    assert process.stdout is not None
    deadline = time.monotonic() + _GRACE
    while (left := deadline - time.monotonic()) > 0 and select.select([process.stdout], [], [], left)[0]:
        if not os.read(process.stdout.fileno(), 65536):
            break


def _send(process: subprocess.Popen[str], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `SystemExit`, so that processes are ended and files cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if before[number] is not signal.SIG_IGN:  # nohup: the user wants the build to continue
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
