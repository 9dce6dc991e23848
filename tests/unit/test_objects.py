"""Tensors in gathered and broadcast objects: those of a GPU arrive on the receiver's device."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn

from farandole.adapters import create_strategy
from farandole.adapters.torch.objects import pack, unpack

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")
CPU = torch.device("cpu")


@pytest.fixture
def from_gpu_3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickles say of each tensor what those of a worker with GPU 3 say."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")


def nested() -> dict[str, Any]:
    half = torch.arange(6).reshape(2, 3).to(torch.bfloat16).t()
    return {"list": [torch.ones(2), half], "parameter": nn.Parameter(torch.tensor(2.0)), "text": "x", "none": None}


@pytest.mark.usefixtures("from_gpu_3")
def test_tensors_of_a_gpu_that_the_receiver_has_not() -> None:
    mine = nested()
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        pickle.loads(pickle.dumps(mine))
    found = unpack(pack(mine), CPU)
    assert (found["text"], found["none"], type(found["parameter"])) == ("x", None, nn.Parameter)
    assert found["list"][0].tolist() == [1.0, 1.0] and float(found["parameter"].detach()) == 2.0
    assert torch.equal(found["list"][1], mine["list"][1]) and found["list"][1].dtype == torch.bfloat16


@pytest.mark.usefixtures("from_gpu_3")
@pytest.mark.parametrize("name", ["ddp", "horovod"])
def test_strategies_gather_and_broadcast_them(name: str) -> None:
    if name == "horovod":
        pytest.importorskip("horovod.torch")
    with create_strategy(name, device="cpu") as strategy:
        (found,) = strategy.gather(nested())
        assert found["list"][0].device == CPU
        assert strategy.broadcast(nested())["list"][0].tolist() == [1.0, 1.0]


def test_tensors_of_the_cpu_stay_there() -> None:
    assert unpack(pack(torch.ones(2)), torch.device("cuda", 1)).device == CPU
