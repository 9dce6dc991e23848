"""Which device a worker trains on: the user's choice, or the GPU that the launcher gave it."""

from __future__ import annotations

import re

import torch
from torch.distributed import Store

from ..errors import LauncherError, OptionError
from ..launch.gpu import gpu_of
from ..worker import Worker


def choose_device(asked: str | None, worker: Worker) -> torch.device:
    """Return the device that is asked for: "cpu", "cuda", or a GPU by number ("cuda:1"); by default a GPU, if any.

    Without a number it is the launcher's choice; see `gpu_of`.

    Raises:
        OptionError: it is none of these, or is not there.
        LauncherError: there are more workers than GPUs.
    """
    numbered = re.fullmatch(r"cuda:(\d+)", asked or "")
    if asked not in (None, "cpu", "cuda") and numbered is None:
        raise OptionError(f"device={asked!r} must be 'cpu' or 'cuda', or name a GPU by number, as in 'cuda:1'")
    gpus = torch.cuda.device_count() if asked != "cpu" and torch.cuda.is_available() else 0
    if asked == "cpu" or (asked is None and gpus == 0):
        return torch.device("cpu")
    if gpus == 0:
        raise OptionError(f"device={asked!r} was asked for, but PyTorch finds no CUDA GPU on this machine")
    if numbered is not None:
        number = int(numbered[1])
        if number >= gpus:
            raise OptionError(f"device={asked!r} was asked for, but PyTorch finds {gpus} GPU(s), numbered from 0")
        return torch.device("cuda", number)
    return torch.device("cuda", gpu_of(worker, gpus))


def gpu_identity(device: torch.device) -> str:
    """Return a text that identifies a GPU among all machines."""
    return str(torch.cuda.get_device_properties(device).uuid)


def share_identities(own: str, worker: Worker, store: Store) -> list[str]:
    """Return all workers' GPUs, in rank order, through a store, without the GPUs."""
    keys = [f"farandole/gpu/{rank}" for rank in range(worker.world_size)]
    store.set(keys[worker.rank], own)
    store.wait(keys)
    return [identity.decode() for identity in store.multi_get(keys)]


def refuse_shared_gpus(identities: list[str]) -> None:
    """Refuse two workers on one GPU, before NCCL fails or hangs.

    Raises:
        LauncherError: there are some; the message names them.
    """
    first: dict[str, int] = {}
    for rank, identity in enumerate(identities):
        if identity in first:
            raise LauncherError(
                f"workers {first[identity]} and {rank} share one GPU ({identity}), which NCCL cannot: start one worker "
                "for each GPU, or pass device='cpu'. Strategies with the option backend share one with backend='gloo'."
            )
        first[identity] = rank


def refuse_nccl_beside(backends: str) -> None:
    """Refuse torch.distributed's NCCL beside Horovod's: nothing orders the two on one GPU, so both could hang.

    `backends` is as `torch.distributed.get_backend_config` returns it.

    Raises:
        LauncherError: its process group uses NCCL.
    """
    if "nccl" in backends:
        raise LauncherError(
            f"torch.distributed is initialized with {backends}, and its NCCL beside Horovod's hangs where both run at "
            "once: initialize it with backend='gloo', which takes CUDA tensors too, or leave it out"
        )
