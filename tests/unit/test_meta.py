"""Models on the meta device, on workers other than rank 0; the conformance suite trains them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from farandole.adapters import OptionError, Worker, create_strategy
from farandole.adapters.torch.meta import allocate

CPU = torch.device("cpu")


def build() -> nn.Sequential:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    model[0].weight.is_special = True
    return model


def test_tensors_get_memory_and_stay_the_same_objects() -> None:
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [*model.parameters(), *model.buffers()]
    allocate(model, CPU, Worker(1, 2, 1, 2))
    after = [*model.parameters(), *model.buffers()]
    assert all(one is other for one, other in zip(before, after, strict=True))
    assert {tensor.device for tensor in after} == {CPU}
    assert model[2].weight is model[0].weight is optimizer.param_groups[0]["params"][0]
    assert not model[0].bias.requires_grad and model[2].bias.requires_grad and model[0].weight.is_special
    assert isinstance(model[0].weight, nn.Parameter)


@pytest.mark.usefixtures("no_launcher", "one_thread")
@pytest.mark.parametrize("name", ["local", "fsdp"])
def test_rank_0_must_have_values(name: str) -> None:
    with create_strategy(name, device="cpu") as strategy:
        model = build()
        with pytest.raises(OptionError, match=r"'0\.weight' is on the meta device on worker 0, whose values all"):
            strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).mean())
