"""Run a launcher as a child: pass signals on, end with the cause of a failure, and leave no process behind.

A launcher of several workers gets its own process group, so that a terminal's Ctrl-C reaches it once, from here. With
one worker it stays in the terminal's foreground group: it may read from the terminal, and gets Ctrl-C from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from ...adapters.errors import LauncherError
from ...adapters.failure_report import FOLDER_VARIABLE, FailureReport, read_reports
from ...adapters.launch.start import Command
from ...adapters.leaving import end_timeout
from .parent_death import adopt_orphans, tied_to_this_process

INTERRUPTED = 130  # a shell's exit code for Ctrl-C
_REST = 3.0  # seconds for the remaining processes of a failed job to end by themselves
_PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)


def run_launcher(command: Command, workers: int) -> int:
    """Run the command to its end, and return its exit code, or 130 if it was interrupted.

    If it fails, the output ends with the traceback of the first failed worker, and a line that names it.

    Raises:
        LauncherError: the command cannot be started.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="farandole-") as folder:
        launcher = _Launcher(command, workers, folder)
        code = launcher.wait()
        if code != 0:
            _end_orphans()
            for line in _reasons(launcher, code, read_reports(Path(folder)), workers):
                print(line, file=sys.stderr, flush=True)
    return code


class _Launcher:
    """The launcher's process.

    told: the signals sent to it, from here or by the terminal, and when (seconds since the epoch).
    is_worker: whether it is the one worker itself, plain Python.
    """

    def __init__(self, command: Command, workers: int, folder: str) -> None:
        self.told: dict[signal.Signals, float] = {}
        self.is_worker = command.is_worker
        self._own_group = workers > 1
        # Ignored signals stay ignored, for example SIGHUP under nohup.
        self._signals = {number for number in _PASSED_ON if signal.getsignal(number) != signal.SIG_IGN}
        if self._own_group:
            self._signals.add(signal.SIGTSTP)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*self._signals, signal.SIGCHLD})
        # On SIGTERM a launcher ends its workers; if it is killed, they survive.
        tie = tied_to_this_process(signal.SIGKILL if self.is_worker else signal.SIGTERM)
        try:
            self._process = subprocess.Popen(
                command.argv,
                env={**os.environ, **command.env, FOLDER_VARIABLE: folder},
                stdin=subprocess.DEVNULL if self._own_group and _is_terminal(0) else None,
                process_group=0 if self._own_group else None,
                preexec_fn=lambda: _prepare_child(tie, before),
            )
        except OSError as error:
            raise LauncherError(f"cannot start {command.argv[0]}: {error.strerror}. See: farandole doctor") from None

    def wait(self) -> int:
        """Pass signals on until the launcher has ended; return the exit code, as a shell reports it."""
        while self._process.poll() is None:
            info = signal.sigwaitinfo({*self._signals, signal.SIGCHLD})
            number = signal.Signals(info.si_signo)
            if number == signal.SIGTSTP:
                self._stop()
            elif number != signal.SIGCHLD:
                self.told.setdefault(number, time.time())
                # The terminal's signals (positive code: from the kernel) have already reached a launcher in the same
                # group.
                if self._own_group or info.si_code <= 0:
                    self._process.send_signal(number)
        code = self._process.returncode
        if code != 0 and signal.SIGINT in self.told:
            return INTERRUPTED
        return code if code >= 0 else 128 - code

    def _stop(self) -> None:
        """Stop with the launcher (Ctrl-Z), and continue with it."""
        os.killpg(self._process.pid, signal.SIGTSTP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.killpg(self._process.pid, signal.SIGCONT)


def _prepare_child(tie: Callable[[], None], mask: set[signal.Signals | int]) -> None:
    tie()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _end_orphans() -> None:
    """End the remaining processes of a failed launcher."""
    left = psutil.Process().children(recursive=True)
    _, alive = psutil.wait_procs(left, timeout=_REST)
    for end, seconds in ((psutil.Process.terminate, end_timeout()), (psutil.Process.kill, _REST)):
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                end(process)
        _, alive = psutil.wait_procs(alive, timeout=seconds)


def _reasons(launcher: _Launcher, code: int, reports: list[FailureReport], workers: int) -> list[str]:
    """Return the last lines of output: the first failed worker's traceback, and a line that names it."""
    ending = [number for number in launcher.told if number not in (signal.SIGUSR1, signal.SIGUSR2)]
    if ending:
        line = f"farandole: the job was ended by {ending[0].name}"
        before = [report for report in reports if report.time < launcher.told[ending[0]]]
        return [line, *_failures(launcher, before)] if before else [line]
    if not reports:
        if launcher.is_worker:
            return [f"farandole: the program was killed by {_name(code - 128)}"] if code > 128 else []
        return [
            f"farandole: the job ended with exit code {code}; no worker raised an error inside its strategy: see the "
            "launcher's output above"
        ]
    return _failures(launcher, reports)


def _failures(launcher: _Launcher, reports: list[FailureReport]) -> list[str]:
    first = reports[0]
    if first.lost:
        if why := next((report.why for report in reports if report.why), ""):
            return [f"farandole: the workers lost each other: {why}"]
        silent = sorted(set(range(first.world_size)) - {report.rank for report in reports})
        if not silent:
            return [
                f"farandole: all {first.world_size} workers lost each other: they called different collectives, or the "
                "network or one of them stopped for longer than the engine's timeout"
            ]
        return [
            f"farandole: {_workers(silent, first.world_size)} ended without an error (killed, or by return, "
            f"sys.exit(0) or os._exit); {_workers([report.rank for report in reports], first.world_size)} lost it"
        ]
    shown = [] if launcher.is_worker else [first.traceback.rstrip()]
    error = first.error.splitlines()[0]
    return [*shown, f"farandole: worker {first.rank} of {first.world_size} failed at {_short(first.where)}: {error}"]


def _workers(ranks: list[int], world_size: int) -> str:
    listed = ", ".join(map(str, sorted(ranks)))
    return f"worker{'s' * (len(ranks) != 1)} {listed} of {world_size}"


def _short(where: str) -> str:
    folder = os.getcwd() + os.sep
    return where.removeprefix(folder)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
