"""Options of `fsdp`, which blocks it gathers one by one, and what it refuses to shard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farandole.adapters import OptionError, Strategy, create_strategy
from farandole.adapters.checkpoint.manifest import LossScale
from farandole.adapters.torch.engines.fsdp import strategy as engine_module
from farandole.adapters.torch.engines.fsdp.state import refuse_without_dtensor
from farandole.adapters.torch.engines.fsdp.units import check_shardable, choose_units

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")


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


def test_blocks_are_moved_and_sharded_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no GPU holds the whole model: rank 0's values of a block are sent just before the block is sharded."""
    done: list[str] = []
    send, shard = engine_module.share_from_rank_0, engine_module.fully_shard

    def sends(tensor: torch.Tensor) -> None:
        done.append(f"send {tensor.numel()}")
        send(tensor)

    def shards(module: nn.Module, **options: Any) -> None:
        done.append(f"shard {type(module).__name__}")
        shard(module, **options)

    monkeypatch.setattr(engine_module, "share_from_rank_0", sends)
    monkeypatch.setattr(engine_module, "fully_shard", shards)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2), nn.LayerNorm(2))
    with create_strategy("fsdp", wrap=["Linear"], device="cpu") as strategy:
        strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).mean())
    sent = ["send 6", "send 2", "shard Linear", "send 9", "send 3", "shard Linear", "send 2", "send 2"]
    assert done == [*sent, "shard Sequential", "shard Root"]


def test_the_model_stays_where_it_is_until_it_is_sharded() -> None:
    with create_strategy("fsdp", device="cpu") as strategy:
        strategy._device = torch.device("meta")
        assert strategy.place(nn.Linear(2, 2)).weight.device.type == "cpu"


def scaled(strategy: Strategy, scale: float, growth_interval: int) -> Any:
    """A training with a scheduler, whose losses are scaled as in float16."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    training: Any = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), scheduler)
    training.engine.scale_loss(torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=growth_interval))
    return training


def test_the_loss_scale_is_in_checkpoints(tmp_path: Path) -> None:
    data = torch.ones(16, 4)
    with create_strategy("fsdp", device="cpu") as strategy:
        training = scaled(strategy, 8.0, 4)
        for batch in training.batches(data, 2, epochs=1):
            training.step(batch)
            if training.progress.step == 6:
                break
        training.save(tmp_path / "scaled", training.progress)
        assert json.loads((tmp_path / "scaled/manifest.json").read_text())["loss_scale"] == {
            "scale": 16.0, "steps": 2, "hysteresis": None
        }  # fmt: skip
        resumed = scaled(strategy, 1024.0, 4)
        resumed.load(tmp_path / "scaled")
        assert resumed.engine.loss_scale() == training.engine.loss_scale() == LossScale(16.0, 2)
        for batch in resumed.batches(data, 2, epochs=1):
            resumed.step(batch)
        assert resumed.engine.loss_scale() == LossScale(32.0, 0)
        resumed.engine.load_loss_scale(LossScale(2.0, 9))  # of an engine that waits longer
        assert resumed.engine.loss_scale() == LossScale(2.0, 1)
    with create_strategy("local", device="cpu") as strategy:  # which has none
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        plain = strategy.prepare(model, optimizer, lambda m, x: m(x).mean(), scheduler)
        assert plain.load(tmp_path / "scaled") == training.progress


def test_a_skipped_update_does_not_advance_the_scheduler() -> None:
    with create_strategy("fsdp", device="cpu") as strategy:
        training = scaled(strategy, 2.0**126, 1000)
        rates, moved, skipped = [], [], []
        before = dict(training.weights())["weight"].clone()
        for batch in training.batches(torch.full((12, 4), 3.0), 1, epochs=1):
            training.step(batch)
            after = dict(training.weights())["weight"].clone()
            rates.append(training.optimizer.param_groups[0]["lr"])
            moved.append(not torch.equal(before, after))
            skipped.append(training.engine.skipped)
            before = after
    assert 1 <= sum(skipped) < 12 and moved == [not skip for skip in skipped]
    updates = [sum(moved[: step + 1]) for step in range(12)]
    assert rates == pytest.approx([1e-3 * 0.5**number for number in updates])
