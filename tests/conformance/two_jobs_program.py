"""One worker of one of two jobs: `two_jobs_program.py NAME FOLDER WORKERS LATE`; it prints whom it met.

FOLDER: where all workers of both jobs wait for each other, so that they join at the same time.
WORKERS: how many these are.
LATE: what comes 1 s after that, as in "A1,B0": worker 1 of job A and worker 0 of job B.
"""

import os
import sys
import time
from pathlib import Path

from farandole.adapters import create_strategy

name, folder, workers, late = sys.argv[1:]
strategy = create_strategy(os.environ.get("FARANDOLE_STRATEGY", "ddp"))
me = f"{name}{strategy.worker.rank}"
Path(folder, me).touch()
ends = time.monotonic() + 60
while len(os.listdir(folder)) < int(workers) and time.monotonic() < ends:
    time.sleep(0.01)
if me in late.split(","):
    time.sleep(1)
with strategy:
    sys.stdout.write(" ".join(["met", *strategy.gather(name)]) + "\n")  # at once, or two workers' lines are mixed
