"""Save in the background and leave at once, in one process for each way: `way_out_program.py FOLDER WAY:STORAGE...`

Each way is a fork of this process, which has imported what takes long, and ends as the interpreter ends it. `local`
storage is the disk; `slow` is a disk that takes longer than a worker may wait when it leaves. A line on stdout for each
way: its name, exit code and seconds.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from torch.distributed import HashStore

from farandole.adapters import Progress, Strategy, Training, create_strategy

AT_ONCE = 3


class SlowDisk(LocalFileSystem):  # type: ignore[misc]
    protocol = "slow"

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(path.removeprefix("slow://"))

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "w" in mode and "data-" in path:
            time.sleep(20)
        return super()._open(path, mode, **options)


fsspec.register_implementation("slow", SlowDisk)


def training_on(strategy: Strategy) -> Training:
    model = torch.nn.Linear(500, 500)
    return strategy.prepare(model, torch.optim.AdamW(model.parameters()), lambda model, batch: model(batch).mean())


def saving(path: str) -> Strategy:
    """Return a strategy with a running save; an earlier one is whole."""
    strategy = create_strategy("local", device="cpu").__enter__()
    training = training_on(strategy)
    training.save(path.removeprefix("slow://"), Progress(0, 1))
    training.save(path, Progress(0, 2), wait=False)
    return strategy


def in_with(leave: Callable[[], object]) -> Callable[[str], None]:
    def way(path: str) -> None:
        with create_strategy("local", device="cpu") as strategy:
            training = training_on(strategy)
            training.save(path.removeprefix("slow://"), Progress(0, 1))
            training.save(path, Progress(0, 2), wait=False)
            leave()

    return way


def fail() -> None:
    raise ValueError("the user's mistake")


def interrupt() -> None:
    raise KeyboardInterrupt


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def terminate_inside_of_an_engine() -> None:
    """The main thread waits in C++, where Python's own signal handlers are not run."""
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    HashStore().wait(["never"], timedelta(seconds=60))


def terminate_a_child() -> None:
    """A process forked meanwhile dies alone."""
    if (child := os.fork()) == 0:
        time.sleep(60)
    os.kill(child, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


def child_that_stays(path: str) -> None:
    """A forked process keeps its parent's open files: loaders, for example, that live as long as their parent."""
    children = []

    def fork() -> None:
        if (child := os.fork()) == 0:
            time.sleep(600)
            os._exit(0)
        children.append(child)

    in_with(fork)(path)
    os.kill(children[0], signal.SIGKILL)


def terminate_with_a_handler_of_ones_own() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)


def leaving_fails(path: str) -> None:
    """An engine that lost others cannot shut down, and its error hides the first one."""

    def settle() -> None:
        raise ValueError("the user's mistake") from None

    with create_strategy("local", device="cpu") as strategy:
        strategy.settle_before_leaving(settle)  # type: ignore[attr-defined]
        training = training_on(strategy)
        training.save(path.removeprefix("slow://"), Progress(0, 1))
        training.save(path, Progress(0, 2), wait=False)


def never_left(path: str) -> None:
    saving(path)


def generator(path: str) -> Iterator[int]:
    with create_strategy("local", device="cpu") as strategy:
        training = training_on(strategy)
        training.save(path.removeprefix("slow://"), Progress(0, 1))
        training.save(path, Progress(0, 2), wait=False)
        yield 1
        yield 2


def outside_of_a_generator(path: str) -> None:
    for _ in generator(path):
        fail()


WAYS: dict[str, Callable[[str], None]] = {
    "return": in_with(lambda: None),
    "exit0": in_with(lambda: sys.exit(0)),
    "exit1": in_with(lambda: sys.exit(1)),
    "raise": in_with(fail),
    "interrupt": in_with(interrupt),
    "sigterm": in_with(terminate),
    "sigterm_in_engine": in_with(terminate_inside_of_an_engine),
    "sigterm_of_child": in_with(terminate_a_child),
    "child_that_stays": child_that_stays,
    "own_handler": in_with(terminate_with_a_handler_of_ones_own),
    "os_exit": in_with(lambda: os._exit(0)),
    "never_left": never_left,
    "leaving_fails": leaving_fails,
    "generator": outside_of_a_generator,
}


def main(folder: str, asked: list[str]) -> None:
    """Start all ways, a few at a time, each as a process that returns from here."""
    with create_strategy("local", device="cpu") as strategy:
        training_on(strategy).save(f"{folder}/first", Progress())  # imports what each way would import
    gc.freeze()  # or each process copies what it looks at
    started: dict[int, tuple[str, float]] = {}

    def wait_for_one() -> None:
        child, status = os.wait()
        name, began = started.pop(child)
        print(name, os.waitstatus_to_exitcode(status), time.monotonic() - began, flush=True)

    for name in asked:
        if len(started) == AT_ONCE:
            wait_for_one()
        way, _, storage = name.partition(":")
        base = Path(folder) / f"{way}-{storage}"
        if (child := os.fork()) == 0:
            with open(f"{base}.output", "w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
            if storage == "slow":
                os.environ["FARANDOLE_LEAVE_TIMEOUT"] = "1"
            return WAYS[way](f"slow://{base}" if storage == "slow" else str(base))
        started[child] = name, time.monotonic()
    while started:
        wait_for_one()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1], sys.argv[2:])
