"""Start workers on this machine with a TF_CONFIG each, and end them together; TensorFlow itself has no launcher.

    python -m farandole.plugins.launch.local_workers -n 2 script.py --lr 0.1

Each worker leads its own session, so that its child processes end with it. A terminal's Ctrl-C does not reach the
workers there; it is passed on.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import psutil

from ...adapters.errors import FarandoleError, LauncherError
from ...adapters.launch.tf_config import START_DEADLINE_VARIABLE, write_tf_config
from ...adapters.leaving import end_timeout
from .parent_death import tied_to_this_process
from .ports import check_ports, hold_ports, port_of

_GRACE = end_timeout()  # seconds for workers to end when asked: they may be saving
_REST = 3.0  # seconds until workers that react to no signal are pressed
_LOOK = 0.5  # seconds between checks for stopped workers
_STOPPED = 5.0  # seconds that a worker may be stopped
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Arguments after the script belong to the script.
@click.command(context_settings={"allow_interspersed_args": False})
@click.option("-n", "--workers", type=click.IntRange(1), default=1, show_default=True, help="How many workers.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="TCP port of worker 0; the others follow.  [default: free ones]"
)
@click.option(
    "--start-deadline",
    type=click.FloatRange(0, min_open=True),
    default=60.0,
    show_default=True,
    envvar=START_DEADLINE_VARIABLE,
    metavar="SECONDS",
    help="How long workers wait for each other at the start.",
)
@click.option("-m", "--module", is_flag=True, help="SCRIPT is the name of a module, as in `python -m`.")
@click.argument("program", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def main(workers: int, port: int | None, start_deadline: float, module: bool, program: tuple[str, ...]) -> None:
    """Run SCRIPT on several workers of this machine, which find each other through TF_CONFIG.

    All of them must succeed: if one fails or stays stopped, it is named and the others are ended. The exit code is that
    of the first worker that failed, or 128 plus the signal's number if a signal ended it.
    """
    argv = [sys.executable, *(["-m"] if module else []), *program]
    try:
        held = [] if port else hold_ports(workers)  # open until all workers have ended
        ports = check_ports(workers, port) if port else [port_of(each) for each in held]
        addresses = [f"127.0.0.1:{each}" for each in ports]
        deadline = {START_DEADLINE_VARIABLE: f"{start_deadline:g}"}
        envs = [{**os.environ, **deadline, "TF_CONFIG": write_tf_config(addresses, index)} for index in range(workers)]
        code = run_workers(argv, envs)
    except FarandoleError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(code)


def run_workers(argv: Sequence[str], envs: Sequence[Mapping[str, str]]) -> int:
    """Run a worker in each environment until all have ended, and return the exit code of the job."""
    signals = _Signals()
    before_exec = tied_to_this_process(signal.SIGKILL)
    started: list[_Worker] = []
    try:
        for index, env in enumerate(envs):
            started.append(_Worker(index, argv, env, before_exec))
        return _watch(started, signals)
    finally:
        for worker in started:
            worker.kill()


class _Signals:
    """Signals to this process, which are waited for instead of handled at once."""

    def __init__(self) -> None:
        self._end, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (*_ENDING, signal.SIGCHLD):
            # Ignored signals stay ignored, for example SIGHUP under nohup.
            if signal.getsignal(number) != signal.SIG_IGN or number == signal.SIGCHLD:
                signal.signal(number, lambda *_: None)

    def wait(self, seconds: float) -> signal.Signals | None:
        """Return a signal that asks to end; `None` after `seconds`, or at once if a worker may have ended."""
        if not select.select([self._end], [], [], seconds)[0]:
            return None
        return next((signal.Signals(number) for number in os.read(self._end, 4096) if number in _ENDING), None)


class _Worker:
    """A worker's process and its child processes."""

    def __init__(
        self, index: int, argv: Sequence[str], env: Mapping[str, str], before_exec: Callable[[], None]
    ) -> None:
        self._index = index
        self._looks = 0
        try:
            self._process = subprocess.Popen(
                argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=before_exec
            )
        except OSError as error:
            raise LauncherError(f"cannot start worker {index}: {error.strerror}") from None

    def __str__(self) -> str:
        return f"worker {self._index} (process {self._process.pid})"

    @property
    def exit_code(self) -> int:
        """As a shell reports it: 128 plus the signal's number if a signal ended it."""
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    @property
    def fault(self) -> str:
        """How it failed."""
        code = self._process.returncode
        if code >= 0:
            return f"ended with exit code {code}"
        return f"was killed by {_name(-code)}"

    def ended(self) -> bool:
        """Whether it has ended; its remaining child processes are then killed."""
        if self._process.returncode is None and self._process.poll() is not None:
            self._kill_group()  # at once: later another group may have this number
        return self._process.returncode is not None

    def stays_stopped(self) -> bool:
        """Whether it was stopped at each of the last checks; a process under a debugger does not count."""
        try:
            stopped = psutil.Process(self._process.pid).status() == psutil.STATUS_STOPPED
        except psutil.Error:  # it has just ended
            stopped = False
        # Count checks, not time: this process may have been stopped as well.
        self._looks = self._looks + 1 if stopped else 0
        return self._looks > _STOPPED / _LOOK

    def send(self, number: int) -> None:
        """Send a signal to the worker alone, which ends its children."""
        os.kill(self._process.pid, number)

    def press(self) -> None:
        """End a worker that did not react: Python handles SIGINT only when the engine returns, perhaps never."""
        if self._ignores_sigterm():
            self.kill()
        else:
            self.send(signal.SIGTERM)

    def _ignores_sigterm(self) -> bool:
        try:
            status = Path(f"/proc/{self._process.pid}/status").read_text()
        except OSError:  # it has ended, or the system has no such files
            return False
        ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
        return bool(int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1)

    def kill(self) -> None:
        """Kill it and its child processes, unless it has ended."""
        if not self.ended():
            self._kill_group()
            self._process.wait()

    def _kill_group(self) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)


def _watch(workers: Sequence[_Worker], signals: _Signals) -> int:
    running = list(workers)
    looked = time.monotonic()
    while running:
        asked = signals.wait(_LOOK)
        if asked is not None:
            _say(f"{asked.name}: ending {', '.join(map(str, running))}")
            _end(running, asked, signals)
            return 128 + asked
        ended = [worker for worker in running if worker.ended()]
        running = [worker for worker in running if worker not in ended]
        failed = [worker for worker in ended if worker.exit_code != 0]
        if failed:
            for worker in failed:
                _say(f"{worker} {worker.fault}{'; ending the others' if running else ''}")
            _end(running, signal.SIGTERM, signals)
            return failed[0].exit_code
        if time.monotonic() - looked >= _LOOK:
            looked = time.monotonic()
            stopped = [worker for worker in running if worker.stays_stopped()]
            if stopped:
                for worker in stopped:
                    _say(
                        f"{worker} has been stopped (by SIGSTOP or similar) for {_STOPPED:g} s, while the others wait "
                        "for it: killing all workers"
                    )
                return 1
    return 0


def _end(workers: Sequence[_Worker], number: signal.Signals, signals: _Signals) -> None:
    """Ask workers to end and wait for them, until their time is over or the user asks again; then kill them."""
    for worker in workers:
        worker.send(number)
    started, pressed = time.monotonic(), False
    running = list(workers)
    while running := [worker for worker in running if not worker.ended()]:
        left = started + (_GRACE if pressed else _REST) - time.monotonic()
        asked = signals.wait(left) if left > 0 else None
        if asked is not None or (left <= 0 and pressed):
            for worker in running:
                worker.kill()
            return
        if left <= 0:
            pressed = True
            for worker in running:
                worker.press()


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _say(text: str) -> None:
    print(f"farandole: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
