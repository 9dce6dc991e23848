"""Strategies one after the other in one process: `python -m farandole.plugins.conformance.reentry ROUNDS STRATEGY...`.

Each worker enters the strategies in this order, trains a few steps in each, compares the losses with plain code, and
leaves it; all of it ROUNDS times. A later round must add nothing to what the first one left in this process: in its
environment, threads, file descriptors and process groups. Models are deleted before the comparison, since a model may
hold the engine that trained it.

A strategy's name may be followed by marks:

    !   it is left by an exception on every worker
    +   the last worker enters it `LATE` seconds after the others

The last strategy of a round has no `!`: what an exception left open is closed when the next strategy is entered.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ...adapters import Strategy, create_strategy
from ...adapters.launch.start import STRATEGY_VARIABLE
from ..launch.job import watch_stacks
from .curves import Curve, prepare, train
from .framework import program_of, reference_curve
from .variants import LOSS_BOUND, VARIANTS

LATE = 3.0
DONE = "entered all of them"
"""The beginning of each worker's last line."""

_MARKS = "!+"
_VARIANT, _DTYPE, _STEPS = "clip", "float32", 3
_SET_BY_TORCH = {"TORCHINDUCTOR_CACHE_DIR"}  # by torch._inductor, when an engine first uses it
# TensorFlow's collectives run in a queue that starts a thread whenever all of its threads are busy, and keeps it for
# the process (`UnboundedWorkQueue`). Their number is random; one more in every round would still be found.
_CHANCE = {"threads": Counter(collective_ops=2)}
_REST = 3.0  # seconds for threads, and the sockets they hold, to end after a strategy was left

Trace = dict[str, Counter[str]]


class PlannedError(Exception):
    """The exception of an entry marked with `!`."""


def main(rounds: int, words: Sequence[str]) -> None:
    """Enter the strategies, and compare."""
    watch_stacks()
    os.environ.pop(STRATEGY_VARIABLE, None)  # the job was started for one of several
    for word in words:
        # Their imports set environment variables.
        program_of(create_strategy(_name_of(word)))
    check = Check()
    for _ in range(rounds):
        for word in words:
            print(_enter(word), flush=True)
        check.end_round()
    print(f"{DONE}: {rounds} rounds of {' '.join(words)}", flush=True)


class Check:
    """Compares what each round leaves with the first one; create it before the first round."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._excepthook = sys.excepthook
        self._first: Trace | None = None
        self._round = 0

    def end_round(self) -> None:
        """Compare the process.

        Raises:
            AssertionError: the environment is not what it was before the first round, or there is more of something
                than after the first round.
        """
        self._round += 1
        changed = {name for name, _ in self._environment.items() ^ os.environ.items()} - _SET_BY_TORCH
        assert not changed, f"round {self._round} changed the environment: {sorted(changed)}"
        assert sys.excepthook is self._excepthook, f"round {self._round} changed sys.excepthook"
        deadline = time.monotonic() + _REST
        while more := self._more():
            if time.monotonic() > deadline:
                raise AssertionError(f"round {self._round} left more than the first round: {more}")
            time.sleep(0.05)

    def _more(self) -> dict[str, dict[str, int]]:
        trace = _trace()
        if self._first is None:
            time.sleep(_REST / 10)
            self._first = trace = _trace()
        most = {kind: counted + _CHANCE.get(kind, Counter()) for kind, counted in self._first.items()}
        return {kind: dict(left) for kind in trace if (left := trace[kind] - most[kind])}


def _trace() -> Trace:
    """Count what this process has, by kind."""
    gc.collect()
    files = Counter[str]()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            files[os.readlink(entry).split(":[")[0]] += 1
        except FileNotFoundError:  # the descriptor for reading the folder
            continue
    return {
        "threads": Counter(_comm(thread) for thread in Path("/proc/self/task").iterdir()),
        "Python's threads": Counter(thread.name for thread in threading.enumerate()),
        "file descriptors": files,
        "process groups": Counter(torch=_process_groups()),
    }


def _comm(thread: Path) -> str:
    try:
        return (thread / "comm").read_text().strip()
    except OSError:
        return "ending"


def _process_groups() -> int:
    if "torch.distributed" not in sys.modules:
        return 0
    from ...adapters.torch.compat import count_process_groups

    # There is no public list of process groups.
    return count_process_groups()


def _enter(word: str) -> str:
    """Enter, train and leave a strategy, and return a line about it."""
    strategy = create_strategy(_name_of(word))
    marks = word.removeprefix(_name_of(word))
    worker = strategy.worker
    if "+" in marks and worker.rank == worker.world_size - 1:
        time.sleep(LATE)
    started = time.monotonic()
    try:
        with strategy:
            curve = _train(strategy)
            if "!" in marks:
                raise PlannedError
    except PlannedError:
        pass
    seconds = time.monotonic() - started
    whole = reference_curve(strategy.capabilities.framework, _VARIANT, _DTYPE)
    difference = Curve(whole.losses[:_STEPS], {}).loss_diff(curve)
    assert difference <= LOSS_BOUND[_DTYPE], f"{word}: losses {curve.losses}, plain code's {whole.losses[:_STEPS]}"
    who = f"worker {worker.rank} of {worker.world_size} by {strategy.launch.launcher}"
    return f"{word}: {who}, {seconds:.2f} s, {len(os.listdir('/proc/self/task'))} threads"


def _name_of(word: str) -> str:
    return word.rstrip(_MARKS)


def _train(strategy: Strategy) -> Curve:
    training = prepare(strategy, VARIANTS[_VARIANT], _DTYPE)
    return train(strategy, training, VARIANTS[_VARIANT], _DTYPE, steps=_STEPS)[0]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
