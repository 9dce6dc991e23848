"""A training script for tests/launch: `fault_program.py STRATEGY FAULT [anything]`; worker 1 has the fault."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

from farandole.adapters import create_strategy

strategy_name, fault = sys.argv[1:3]
with create_strategy(strategy_name) as strategy:
    worker = strategy.worker
    told = {"rank": worker.rank, "size": worker.world_size, "arguments": sys.argv[3:]}
    strategy.barrier()
    print(f"READY {json.dumps(told)}\n", end="", flush=True)
    if worker.rank == 1:
        if fault == "raise":
            raise ValueError("the mistake in the script")
        if fault == "exit":
            sys.exit(3)
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "deaf":
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(600)
    if fault != "none":
        strategy.barrier()  # worker 0 is blocked in a collective when the fault happens
