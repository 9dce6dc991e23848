"""A launcher of two workers, for tests of its parent: `stand_in_launcher.py MODE`, or `... worker MODE RANK`.

It ends its workers when it is told to end, as real ones do, and says which signals it was sent. No engine is imported.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from farandole.adapters import Worker, WorkerLostError
from farandole.adapters.failure_report import report_failure


def launch(mode: str) -> int:
    got: list[str] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: got.append(signal.Signals(number).name))
    workers = [subprocess.Popen([sys.executable, __file__, "worker", mode, str(rank)]) for rank in range(2)]
    print("LAUNCHER", os.getpid(), *(worker.pid for worker in workers), flush=True)
    while (mode == "raise_early" or all(worker.poll() is None for worker in workers)) and not got:
        time.sleep(0.01)
    if got:
        time.sleep(0.3)  # for a signal that is sent twice
    else:
        time.sleep(0.5)  # for the other one's report
    for worker in workers:
        worker.kill()
    print("SIGNALS", *got, flush=True)
    return 7


def work(mode: str, rank: int) -> None:
    worker = Worker(rank, 2, rank, 2)
    try:
        if mode in ("lost", "all_lost", "knows_why") or (mode == "raise" and rank == 0):
            lost = WorkerLostError("worker 1 is gone")
            lost.why = "worker 0 was alone" if (mode, rank) == ("knows_why", 1) else ""
            raise lost
        if mode == "saving":
            signal.signal(
                signal.SIGTERM, lambda *_: (time.sleep(0.3), os.write(1, f"SAVED {rank}\n".encode()), sys.exit())
            )
            print(f"READY {rank}\n", end="", flush=True)
        if mode == "raise" or (mode == "raise_early" and rank == 1):
            time.sleep(0.2)  # the other one reports first
            raise ValueError("the mistake\nin two lines")
    except Exception as error:
        if mode != "lost" or rank == 0:
            report_failure(error, worker)
        raise
    time.sleep(60)


if __name__ == "__main__":
    if sys.argv[1] == "worker":
        work(sys.argv[2], int(sys.argv[3]))
    else:
        sys.exit(launch(sys.argv[1]))
