"""What `fsdp` promises beyond the contract, one function each, run by every worker of one job."""

from __future__ import annotations

import copy
import json
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from farandole.adapters import Strategy

PROMISES: dict[str, Callable[[Strategy], None]] = {}
X = torch.randn(24, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = X.sin().sum(1, keepdim=True)


def promise(function: Callable[[Strategy], None]) -> Callable[[Strategy], None]:
    PROMISES[function.__name__] = function
    return function


class Net(nn.Module):
    """Own parameters, and blocks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.entry = nn.Linear(8, 7)
        self.blocks = nn.Sequential(nn.GELU(), nn.Linear(7, 7), nn.GELU(), nn.Linear(7, 5), nn.GELU(), nn.Linear(5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.blocks(self.entry(x))
        return y


def net() -> nn.Module:
    return Net().double()


def mse(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def train_plainly(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any = mse, data: Any = (X, Y)) -> None:
    """The same steps as `train`, in plain PyTorch."""
    for first in range(0, 24, 6):
        optimizer.zero_grad()
        loss(model, tuple(part[first : first + 6] for part in data)).backward()
        optimizer.step()


def train(training: Any, data: Any = (X, Y)) -> None:
    for batch in training.batches(data, 6, shuffle=False):
        training.step(batch)


def assert_same(training: Any, model: nn.Module) -> None:
    plain = model.state_dict()
    for name, weight in list(training.weights()):  # gathered by all, before one of them may fail
        torch.testing.assert_close(weight, plain[name], rtol=1e-9, atol=1e-9)


@promise
def the_model_evaluates_outside_of_steps(strategy: Strategy) -> None:
    plain, model = net(), net()
    training = strategy.prepare(model, torch.optim.AdamW(model.parameters()), mse)
    optimizer, shards = torch.optim.AdamW(plain.parameters()), list(model.parameters())
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):  # the first one before any training
        with mode():
            torch.testing.assert_close(model(X), plain(X))
        assert all(
            one is other and isinstance(one, DTensor) for one, other in zip(shards, model.parameters(), strict=True)
        )
        train(training)
        train_plainly(plain, optimizer)
        assert all(one is other for one, other in zip(shards, model.parameters(), strict=True))
    assert_same(training, plain)


@promise
def the_state_of_a_used_optimizer_moves(strategy: Strategy) -> None:
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (torch.optim.AdamW, {"lr": 0.01, "amsgrad": True}),
        (torch.optim.AdamW, {"lr": 0.01, "fused": True}),
        (torch.optim.AdamW, {"lr": 0.01, "foreach": True}),
        (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
        (torch.optim.NAdam, {"lr": 0.01}),
        (torch.optim.Adamax, {"lr": 0.01}),
        (torch.optim.RAdam, {"lr": 0.01}),
        (torch.optim.RMSprop, {"lr": 0.01}),
        (torch.optim.Adagrad, {"lr": 0.01}),
        (torch.optim.Adadelta, {"lr": 0.01}),
        (torch.optim.ASGD, {"lr": 0.01}),
    ]
    for kind, options in kinds:
        plain = net()
        optimizer = kind(plain.parameters(), **options)
        train_plainly(plain, optimizer)
        model = copy.deepcopy(plain)
        used = kind(model.parameters(), **options)
        used.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        training = strategy.prepare(model, used, mse)
        train(training)
        train_plainly(plain, optimizer)
        assert_same(training, plain)


@promise
def tied_parameters_stay_one(strategy: Strategy) -> None:
    def tied() -> nn.Module:
        model = Net()
        model.blocks[3] = nn.Linear(7, 7)
        model.blocks[3].weight = model.blocks[1].weight
        model.blocks[5] = nn.Linear(7, 1)
        return model.double()

    plain, model = tied(), tied()
    training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05), mse)
    train(training)
    train_plainly(plain, torch.optim.SGD(plain.parameters(), lr=0.05))
    assert_same(training, plain)


class Branches(nn.Module):
    """A stem and three branches of blocks, of which a loss may use any."""

    def __init__(self, width: int = 8, reentrant: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reentrant = reentrant
        self.stem = nn.Linear(8, width)
        self.branches = nn.ModuleList(nn.ModuleList(nn.Linear(width, width) for _ in range(2)) for _ in range(3))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for number, branch in enumerate(self.branches):
            y = self.stem(x)
            for block in branch:  # type: ignore[attr-defined]
                y = checkpoint(block, y, use_reentrant=True) if self.reentrant and number == 0 else block(y).tanh()
            outputs.append(y.mean(1, keepdim=True))
        return outputs


@promise
def workers_may_use_what_came_out_of_other_blocks(strategy: Strategy) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.mse_loss(model(batch[0])[min(rank, 1)], batch[1])

    def of_all(model: nn.Module, batch: Any) -> torch.Tensor:
        parts = zip(batch[0].chunk(world_size), batch[1].chunk(world_size), strict=True)
        return sum(functional.mse_loss(model(x)[min(number, 1)], y) for number, (x, y) in enumerate(parts)) / world_size

    plain, model = Branches().double(), Branches().double()
    options = {"lr": 0.05, "weight_decay": 0.5}
    training = strategy.prepare(model, torch.optim.AdamW(model.parameters(), **options), loss)
    train(training)
    train_plainly(plain, torch.optim.AdamW(plain.parameters(), **options), of_all)
    assert_same(training, plain)
    untouched = dict(Branches().double().named_parameters())
    for name, weight in list(training.weights()):
        assert torch.equal(weight, untouched[name]) == name.startswith("branches.2"), name


@promise
def a_reentrant_checkpoint_trains_beside_an_unused_output(strategy: Strategy) -> None:
    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.mse_loss(model(batch[0])[0], batch[1])

    plain, model = Branches(reentrant=True).double(), Branches(reentrant=True).double()
    training = strategy.prepare(model, torch.optim.AdamW(model.parameters(), weight_decay=0.5), loss)
    train(training)
    train_plainly(plain, torch.optim.AdamW(plain.parameters(), weight_decay=0.5), loss)
    assert_same(training, plain)


@promise
def a_step_that_failed_leaves_the_next_one_right(strategy: Strategy) -> None:
    broken = [True]

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        value = mse(model, batch)
        if broken:
            broken.clear()
            raise ValueError("a loss that failed")
        return value

    plain, model = net(), net()
    training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.05), loss)
    try:
        train(training)
    except ValueError:
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    train(training)
    train_plainly(plain, torch.optim.SGD(plain.parameters(), lr=0.05))
    assert not broken
    assert_same(training, plain)


@promise
def a_shard_is_the_memory_that_the_optimizer_updates(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, torch.optim.AdamW(model.parameters()), mse)
    train(training)
    engine = training.engine  # type: ignore[attr-defined]
    for parameter in model.parameters():
        shard, whole = engine.shard(parameter), engine.whole(parameter).reshape(-1)
        end = shard.start + shard.weight.numel()
        assert torch.equal(shard.weight, whole[shard.start : end])
        assert strategy.reduce(shard.weight.numel(), "sum") == engine.shape(parameter).numel()
        assert shard.slots["exp_avg"].shape == shard.weight.shape
        shard.weight.fill_(2.0)
        shard.slots["exp_avg"].fill_(3.0)
        assert (engine.whole(parameter) == 2).all()
        assert (training.optimizer.state[parameter]["exp_avg"].full_tensor() == 3).all()


@promise
def a_worker_keeps_16_bytes_a_parameter_over_n(strategy: Strategy) -> None:
    model = nn.Sequential(*(nn.Linear(96, 96) for _ in range(4)))
    training = strategy.prepare(model, torch.optim.AdamW(model.parameters()), lambda m, x: m(x).square().mean())
    for batch in training.batches(torch.ones(6, 96), 6):
        training.step(batch)
    kept: dict[int, int] = {}
    for parameter in model.parameters():
        slots = [value for value in training.optimizer.state[parameter].values() if value.dim() > 0]
        for tensor in (parameter, parameter.grad, *slots):
            storage = tensor.to_local().untyped_storage()  # type: ignore[union-attr]
            kept[storage.data_ptr()] = storage.nbytes()
    numel = sum(parameter.numel() for parameter in model.parameters())
    assert sum(kept.values()) == 16 * numel / strategy.worker.world_size


def main(strategy: Strategy, folder: Path) -> None:
    for name, function in PROMISES.items():
        try:
            function(strategy)
            broken = None
        except Exception:
            broken = traceback.format_exc()
        (folder / f"{name}-{strategy.worker.rank}.json").write_text(json.dumps(broken))
