"""Contract 1, 2 and 4: the same curve, legal differences, and the user's learning rate."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from .....adapters import DataError, OptionError, Strategy
from ... import curves
from ...checks.common import batches_of, same_everywhere, same_weights, weights_of
from ...variants import LOSS_BOUND, VARIANTS, WEIGHT_BOUND
from .table import TORCH

# 1. Same curve.


@TORCH.add
def workers_start_from_rank_0(strategy: Strategy, folder: Path) -> None:
    class Drawn(nn.BatchNorm1d):
        def __init__(self, seed: int) -> None:
            super().__init__(3)
            stream = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.weight, generator=stream)
            self.get_buffer("running_mean").normal_(generator=stream)

    with strategy.scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about BatchNorm, which has its own check
        model = Drawn(strategy.worker.rank)
        training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).mean())
    expected, found = Drawn(0), weights_of(training)
    assert np.array_equal(found["weight"], expected.weight.detach())
    assert np.array_equal(found["running_mean"], expected.get_buffer("running_mean"))


@TORCH.add
def models_on_the_meta_device_start_from_rank_0(strategy: Strategy, folder: Path) -> None:
    """Except on rank 0: then the other workers of a host need no memory for what rank 0's values replace."""

    def build(rank: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        with contextlib.nullcontext() if rank == 0 else torch.device("meta"):
            model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8), nn.Linear(8, 1))
            model[2].weight.requires_grad_(False)
            model.register_buffer("scale", torch.full((2,), 0.5))
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    model, optimizer = build(strategy.worker.rank)
    training = strategy.prepare(model, optimizer, lambda m, x: (m(x) * m.scale[0]).square().mean())
    expected, found = build(0)[0].state_dict(), weights_of(training)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    training.step(next(training.batches(torch.linspace(-1, 1, 48).reshape(8, 6), 8)))
    moved = weights_of(training)
    assert same_everywhere(strategy, moved.values())
    assert {name for name in moved if not np.array_equal(moved[name], found[name])} == {
        "0.weight", "0.bias", "2.bias", "3.weight", "3.bias"
    }  # fmt: skip


@TORCH.add
def accumulation_reduces_once_a_step(strategy: Strategy, folder: Path) -> None:
    if not strategy.capabilities.accumulates_locally or not hasattr(strategy, "wrap"):
        return
    model = nn.Linear(1, 1, bias=False, device=strategy.device)
    engine = strategy.wrap(model, torch.optim.SGD(model.parameters(), lr=0.5), accumulate=3)
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    for step in range(3):
        engine.zero_grad()
        for number in range(3):
            last = number == 2
            with contextlib.nullcontext() if last else engine.no_sync():
                engine.backward(engine.forward(torch.full((1, 1), rank + 1.0, device=strategy.device)).sum())
            if step > 0 and not last:  # DDP records a static graph in the first step, which always synchronizes
                assert _value_of(model.weight.grad) == (rank + 1) * (number + 1), "a gradient was reduced too early"
        before = model.weight.item()
        engine.reduce_gradients()
        engine.update()
        mean = 3 * (world_size + 1) / 2
        assert before - model.weight.item() == pytest.approx(0.5 * mean, rel=1e-6)


# 2. Legal differences are named, the rest refused.


@TORCH.add
def parameter_used_by_some_workers_gets_the_mean(strategy: Strategy, folder: Path) -> None:
    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # So large that two of them fill DeepSpeed's bucket where a test makes it small.
            self.always, self.rank_0_only, self.never = (nn.Parameter(torch.ones(61)) for _ in range(3))

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            used = self.always.sum() + (self.rank_0_only.sum() if strategy.worker.is_main else 0)
            return used + 0.0 * batch.sum()

    with strategy.scope():
        model = Partial()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x))
    for batch in training.batches(torch.zeros(12, 1), 6, epochs=2):
        training.step(batch)
    weights = weights_of(training)
    assert np.array_equal(weights["never"], np.ones(61)), "a parameter without a gradient was updated"
    assert (weights["rank_0_only"] < 0.95).all(), "a parameter that one worker used was not updated"
    assert same_everywhere(strategy, weights.values())


@TORCH.add
def placeholder_leaves_no_trace(strategy: Strategy, folder: Path) -> None:
    rank, world_size = strategy.worker.rank, strategy.worker.world_size
    with strategy.scope(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(15, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean())
    warned = any("BatchNorm" in str(warning.message) for warning in caught)
    assert warned == (world_size > 1), "the warning about unsynchronized BatchNorm is for several workers"
    full, short = training.batches(torch.randn(2 * world_size + 1, 3, 5), 2 * world_size)
    assert short.weights == ((1.0,) if rank == 0 else (0.0,))
    buffers = [buffer.clone() for buffer in model.buffers()]
    state = _random_state(strategy.device)
    loss = training.step(dataclasses.replace(short, random_seed=None))
    untouched = all(map(torch.equal, buffers, model.buffers()))
    assert untouched == (rank > 0), "only a placeholder leaves buffers unchanged"
    assert torch.equal(state, _random_state(strategy.device)) == (rank > 0), "only a placeholder keeps the random state"
    assert math.isfinite(float(loss)) and math.isfinite(float(training.step(full)))


@TORCH.add
def refuses_what_has_no_mean(strategy: Strategy, folder: Path) -> None:
    with strategy.scope():
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        alien = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        with pytest.raises(OptionError, match="optimizer holds parameters"):
            strategy.prepare(model, alien, lambda m, x: m(x).mean())
        with pytest.raises(OptionError, match="accumulate"):
            strategy.prepare(model, optimizer, lambda m, x: m(x).mean(), accumulate=0)
        with pytest.raises(OptionError, match="clip_norm"):
            strategy.prepare(model, optimizer, lambda m, x: m(x).mean(), clip_norm=-1.0)
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).mean())
    with pytest.raises(DataError, match="length 0"):
        training.batches(torch.zeros(0, 1), 4)
    with pytest.raises(DataError, match="add up to 0"):
        training.step(next(training.batches(torch.zeros(8, 1), 8, weight=lambda _: 0)))
    if strategy.worker.world_size > 1:
        with pytest.raises(OptionError, match="smaller than the"):
            training.batches(torch.zeros(8, 1), strategy.worker.world_size - 1)


@TORCH.add
def parameters_of_some_steps_are_updated_in_those(strategy: Strategy, folder: Path) -> None:
    """The optimizer counts a parameter's own steps; in others it is neither updated nor decayed, nor clipped by."""

    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.first, self.extra, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 1)
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
            self.use_extra = False

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            hidden = nn.functional.gelu(self.first(features))
            output: torch.Tensor = self.last(hidden + self.extra(hidden) if self.use_extra else hidden)
            return output

    def build() -> tuple[Sometimes, torch.optim.Optimizer]:
        model = Sometimes()
        groups = [{"params": list(model.last.parameters()), "lr": 0.1}]
        groups += [{"params": [*model.first.parameters(), *model.extra.parameters(), model.frozen]}]
        return model, torch.optim.AdamW(groups, lr=0.01, weight_decay=0.1)

    data = torch.linspace(-1, 1, 144).sin().reshape(24, 6)
    reference, plain = build()
    expected = []
    for step in range(9):
        reference.use_extra = step % 2 == 1
        plain.zero_grad()
        loss = reference(data[8 * (step % 3) : 8 * (step % 3 + 1)]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        plain.step()
        expected.append(loss.item())
    with strategy.scope():
        model, optimizer = build()
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), accumulate=2, clip_norm=0.5)
    losses = []
    for step, batch in enumerate(training.batches(data, 8, epochs=3, shuffle=False)):
        model.use_extra = step % 2 == 1
        losses.append(float(training.step(batch)))
    assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"], abs=LOSS_BOUND["float32"])
    for name, weight in reference.state_dict().items():
        assert np.linalg.norm(weights_of(training)[name] - weight.numpy()) <= WEIGHT_BOUND["float32"] * weight.norm()


@TORCH.add
def parameters_given_to_the_optimizer_later_are_trained_or_refused(strategy: Strategy, folder: Path) -> None:
    """First the head is trained, later all layers; the workers' replicas must stay equal."""

    def build() -> tuple[nn.Sequential, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 1))
        return model, torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)

    data = torch.linspace(-1, 1, 144).sin().reshape(24, 6)
    reference, plain = build()
    expected = []
    for step in range(6):
        if step == 2:
            plain.add_param_group({"params": list(reference[0].parameters())})
        plain.zero_grad()
        loss = reference(data[8 * (step % 3) : 8 * (step % 3 + 1)]).square().mean()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in plain.param_groups for p in group["params"]], 0.5)
        plain.step()
        expected.append(loss.item())
    with strategy.scope():
        model, optimizer = build()
        training = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), clip_norm=0.5)
    losses: list[float] = []
    refusal = ""
    for step, batch in enumerate(training.batches(data, 8, epochs=2, shuffle=False)):
        if step == 2:
            training.optimizer.add_param_group({"params": list(training.model[0].parameters())})
        try:
            if step == 2:
                training.save(folder / "before", training.progress)
            losses.append(float(training.step(batch)))
        except OptionError as error:
            refusal = f"step {step}: {error}"
            break
    if refusal:
        assert refusal.startswith("step 2: parameters were given to the optimizer after prepare()")
        return
    assert losses == pytest.approx(expected, rel=LOSS_BOUND["float32"], abs=LOSS_BOUND["float32"])
    for name, weight in reference.state_dict().items():
        assert np.linalg.norm(weights_of(training)[name] - weight.numpy()) <= WEIGHT_BOUND["float32"] * weight.norm()
    with strategy.scope():
        model, optimizer = build()
        again = strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), clip_norm=0.5)
    again.optimizer.add_param_group({"params": list(again.model[0].parameters())})
    again.load(folder / "before")
    rest = [float(again.step(batch)) for batch in again.batches(data, 8, epochs=2, shuffle=False)]
    assert rest == pytest.approx(expected[2:], rel=LOSS_BOUND["float32"], abs=LOSS_BOUND["float32"])


# 4. The learning rate is the user's.


@TORCH.add
def learning_rate_is_the_users(strategy: Strategy, folder: Path) -> None:
    training = curves.prepare(strategy, VARIANTS["sgd_momentum"], "float32")
    assert [group["lr"] for group in training.optimizer.param_groups] == [0.05], "the learning rate was changed"
    batches = batches_of(strategy, training)
    training.step(next(batches))
    before = weights_of(training)
    for group in training.optimizer.param_groups:
        group["lr"] = 0.0
    training.step(next(batches))
    after = weights_of(training)
    assert same_weights(before, after), "a rate of 0 does not reach the engine"


def _random_state(device: torch.device) -> torch.Tensor:
    """Return the state of the stream that a model on this device draws from."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.random.get_rng_state()


def _value_of(tensor: torch.Tensor | None) -> float:
    """Return the number in a tensor, which must not be `None`."""
    assert tensor is not None
    return tensor.item()
