"""Options of `fsdp`, which blocks it gathers one by one, and what it refuses to shard."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from farandole.adapters import OptionError, create_strategy
from farandole.adapters.torch.engines.fsdp.state import refuse_without_dtensor
from farandole.adapters.torch.engines.fsdp.units import check_shardable, choose_units

pytestmark = pytest.mark.usefixtures("no_launcher")


class Block(nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        down: torch.Tensor = self.down(self.up(x))
        return down


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1))


def names_of(model: nn.Module, wrap: Any) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[unit] for unit in choose_units(model, wrap)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"wrap": 0}, "wrap=0 must be"),
        ({"wrap": True}, "wrap=True must be"),
        ({"wrap": "Block"}, "wrap='Block' must be a list of names"),
        ({"wrap": [Block]}, "must be a list of names"),
        ({"reshard_after_forward": 2}, "reshard_after_forward=2 must be True or False"),
        ({"precision": "int8"}, "precision='int8' must be one of float32, bf16, fp16"),
        ({"precision": "fp16", "device": "cpu"}, "precision='fp16' is for GPUs"),
        ({"offload": True, "device": "cpu"}, "offload=True keeps shards on the CPU, where"),
        ({"backend": "carrier_pigeon"}, "built without the backend"),
        ({"timeout": 0}, "timeout=0 must be a positive number"),
        ({"wraps": 1}, "Did you mean 'wrap'"),
    ],
)
def test_what_an_option_does_not_take_is_said(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        create_strategy("fsdp", **options)


@pytest.mark.parametrize(("precision", "exact"), [("float32", True), ("bf16", False)])
def test_capabilities(precision: str, exact: bool) -> None:
    capabilities = create_strategy("fsdp", precision=precision, device="cpu").capabilities
    assert capabilities.shards == {"parameters", "gradients", "optimizer"}
    assert not capabilities.accumulates_locally
    assert capabilities.exact == exact


@pytest.mark.parametrize(
    ("wrap", "units"),
    [
        (10_000, []),
        (500, ["blocks.1", "blocks.0"]),
        (72, ["head.0", "blocks.1", "blocks.0"]),
        (1, ["head.2", "head.0", "blocks.1", "blocks.0"]),
        (["Block"], ["blocks.1", "blocks.0"]),
        ([], []),
        (["Stack"], []),
    ],
)
def test_blocks_are_chosen_by_size_or_class(wrap: Any, units: list[str]) -> None:
    assert names_of(Stack(), wrap) == units


def test_inner_blocks_come_first_and_outer_ones_count_what_is_left() -> None:
    chosen = names_of(Stack(), ["Block", "Linear"])
    assert "blocks.0" not in chosen and {"blocks.0.up", "blocks.0.down"} < set(chosen)
    outer = nn.Sequential(nn.Sequential(Block(), nn.Linear(8, 2)), nn.Linear(2, 2))
    assert names_of(outer, 500) == ["0.0"]
    assert names_of(outer, 18) == ["0.1", "0.0"]


def test_a_block_that_shares_a_parameter_is_left_to_the_model_or_refused() -> None:
    model = Stack()
    model.head[0].weight = model.embedding.weight
    assert names_of(model, 72) == ["blocks.1", "blocks.0"]
    with pytest.raises(OptionError, match=r"wrap names Linear, which shares the parameter 'embedding\.weight'"):
        choose_units(model, ["Linear"])


def test_what_wrap_names_must_be_in_the_model_and_run() -> None:
    with pytest.raises(OptionError, match=r"no module\. Did you mean 'Block'\?"):
        choose_units(Stack(), ["Blok"])
    with pytest.raises(OptionError, match="wrap names ModuleList, which has no forward"):
        choose_units(Stack(), ["ModuleList"])


def with_parameter(parameter: nn.Parameter) -> nn.Module:
    model = nn.Linear(2, 2)
    model.register_parameter("odd", parameter)
    return model


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (with_parameter(nn.Parameter(torch.tensor(1.0))), r"parameter 'odd' is a scalar, .* give it the shape \(1,\)"),
        (with_parameter(nn.Parameter(torch.ones(0))), "parameter 'odd' has no elements, .*: leave it out"),
        (with_parameter(nn.Parameter(torch.ones(3, 2).t())), "'odd', which is not contiguous"),
        (with_parameter(nn.Parameter(torch.ones(2).double())), r"'weight' is float32 and 'odd' is float64|'bias' is"),
        (nn.ModuleList([nn.Linear(2, 2)]), "does not shard a ModuleList"),
    ],
    ids=["scalar", "empty", "strided", "types", "list"],
)
def test_what_fsdp_does_not_shard_is_named(model: nn.Module, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        check_shardable(model, [])


def test_types_may_differ_between_blocks_and_in_what_is_frozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2))
    check_shardable(model, [model[0]])
    model[0].requires_grad_(False)
    check_shardable(model, [])


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (torch.optim.Rprop, {}, "Rprop cannot update the shards of FSDP: use another"),
        (torch.optim.SGD, {"lr": 0.1, "fused": True}, "SGD cannot .* when fused"),
        (torch.optim.Adagrad, {"fused": True}, "Adagrad cannot .* when fused"),
    ],
)
def test_optimizers_without_kernels_for_shards_are_refused(kind: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        refuse_without_dtensor(kind(nn.Linear(1, 1).parameters(), **options))


@pytest.mark.parametrize("next_one", ["ddp", "fsdp"])
def test_a_model_that_fsdp_sharded_is_refused_by_name(next_one: str) -> None:
    model = nn.Linear(4, 1)

    def prepare(name: str) -> None:
        with create_strategy(name) as strategy:
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            strategy.prepare(model, optimizer, lambda model, batch: model(batch).mean())

    prepare("fsdp")
    with pytest.raises(OptionError, match=r"are shards \(DTensors\), as strategy 'fsdp' leaves them"):
        prepare(next_one)
