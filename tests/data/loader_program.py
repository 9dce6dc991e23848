"""A loader whose process group gets SIGTERM while the program continues, and which is never closed.

python loader_program.py spawn | fork | forkserver
"""

from __future__ import annotations

import os
import signal
import sys
import time

import torch
from torch.utils.data import DataLoader

from farandole.adapters.torch.loader_sigterm import outlive_sigterm


class Numbers(torch.utils.data.Dataset[int]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


class Told:
    """The user's own function, which is called too."""

    def __call__(self, worker_id: int) -> None:
        print(f"LOADER {worker_id}", flush=True)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda number, frame: print("ASKED TO END", flush=True))
    context = sys.argv[1]
    loader = DataLoader(Numbers(), 1, num_workers=1, worker_init_fn=Told(), multiprocessing_context=context)
    outlive_sigterm(loader)
    outlive_sigterm(loader)
    batches = iter(loader)
    next(batches)
    os.killpg(0, signal.SIGTERM)
    time.sleep(1)
    print(f"READ {1 + len(list(zip(batches, range(6), strict=False)))}", flush=True)


if __name__ == "__main__":
    main()
