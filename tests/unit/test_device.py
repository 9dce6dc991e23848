"""Which device a worker trains on; what needs a GPU itself is in tests/cuda."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from farandole.adapters import LauncherError, OptionError, Worker
from farandole.adapters.launch.gpu import gpu_of
from farandole.adapters.torch.device import choose_device, refuse_nccl_beside, refuse_shared_gpus, share_identities
from farandole.adapters.torch.engines.deepspeed.library import as_local_rank

SHOWN = {"CUDA_VISIBLE_DEVICES": "0"}


def local(rank: int, world_size: int) -> Worker:
    return Worker(rank, world_size, rank, world_size)


@pytest.mark.parametrize(
    ("worker", "visible", "environ", "number"),
    [
        (local(0, 1), 1, {}, 0),
        (local(1, 2), 2, {}, 1),
        (local(1, 2), 4, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, 1),
        (local(0, 2), 1, SHOWN, 0),
        (local(1, 2), 1, SHOWN, 0),  # as Slurm's --gpus-per-task shows each task its own one
    ],
)
def test_the_gpu_is_the_launchers_word(worker: Worker, visible: int, environ: dict[str, str], number: int) -> None:
    assert gpu_of(worker, visible, environ) == number


@pytest.mark.parametrize(("rank", "visible"), [(0, 1), (1, 1), (3, 2)])
def test_more_workers_than_gpus_are_refused(rank: int, visible: int) -> None:
    with pytest.raises(LauncherError, match=rf"4 workers on this machine, but only {visible} GPU\(s\): start at most"):
        gpu_of(local(rank, 4), visible, {})


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
def test_a_gpu_is_asked_for_by_number() -> None:
    """As Lightning's `Trainer(devices=[2, 3])` does."""
    assert choose_device("cuda:3", local(1, 2)) == torch.device("cuda", 3)
    assert choose_device("cuda", local(1, 2)) == choose_device(None, local(1, 2)) == torch.device("cuda", 1)
    assert choose_device("cpu", local(1, 2)) == torch.device("cpu")
    with pytest.raises(OptionError, match=r"device='cuda:4' was asked for, but PyTorch finds 4 GPU\(s\)"):
        choose_device("cuda:4", local(1, 2))
    with pytest.raises(OptionError, match="device='cuda:x' must be"):
        choose_device("cuda:x", local(1, 2))


def test_workers_that_share_a_gpu_are_named() -> None:
    store, gpus = HashStore(), ["GPU-a", "GPU-b", "GPU-a"]
    with ThreadPoolExecutor(3) as threads:
        shared = list(threads.map(lambda rank: share_identities(gpus[rank], local(rank, 3), store), range(3)))
    assert shared == [gpus] * 3
    refuse_shared_gpus(["GPU-a", "GPU-b"])
    with pytest.raises(LauncherError, match=r"workers 0 and 2 share one GPU \(GPU-a\), which NCCL cannot: start one"):
        refuse_shared_gpus(gpus)


@pytest.mark.parametrize(("backends", "refused"), [("cpu:gloo,cuda:nccl", True), ("cpu:gloo,cuda:gloo", False)])
def test_a_second_nccl_beside_horovods_is_refused(backends: str, refused: bool) -> None:
    error: Any = None
    try:
        refuse_nccl_beside(backends)
    except LauncherError as raised:
        error = raised
    assert (error is not None) == refused
    assert not refused or "initialize it with backend='gloo'" in str(error)


def test_deepspeed_finds_the_gpus_number_for_the_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.delenv("OMPI_COMM_WORLD_LOCAL_RANK", raising=False)
    with as_local_rank(torch.device("cuda", 2)):
        assert os.environ["LOCAL_RANK"] == "2"
        assert "OMPI_COMM_WORLD_LOCAL_RANK" not in os.environ
    with as_local_rank(torch.device("cpu")):
        assert os.environ["LOCAL_RANK"] == "0"
    assert os.environ["LOCAL_RANK"] == "0"
