"""Budgets, plans and kept operators of gradient checkpointing in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from farandole.adapters import CallbackError, OptionError, Strategy, Training, create_strategy
from farandole.plugins.conformance.torch.living import living_bytes
from farandole.plugins.gradient_checkpointing import GradientCheckpointing, plan

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")

WIDTH, BLOCKS, ROWS = 32, 6, 64
BATCH = ROWS * WIDTH * 4  # bytes; only plans count it, because it is saved, although it was there before
SCALARS = 64  # bytes that live beside what is saved: the loss


@pytest.fixture
def local(no_launcher: None) -> Iterator[Strategy]:
    with create_strategy("local", device="cpu") as strategy:
        yield strategy


class Block(nn.Module):
    def __init__(self, width: int = 4 * WIDTH) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide = nn.Linear(WIDTH, width)
        self.narrow = nn.Linear(width, WIDTH)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.dropout(self.narrow(functional.gelu(self.wide(self.norm(x)))))


class Rectified(nn.Module):
    """Saves its output, as the next one does, which has it as its input."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return functional.relu(self.norm(self.narrow(functional.relu(self.wide(x)))))


class Chain(nn.Module):
    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: torch.Tensor) -> Any:
        x = functional.gelu(self.first(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(x), torch.zeros(len(x), dtype=torch.long))


def prepared(strategy: Strategy, block: Callable[[], nn.Module], callbacks: list[Any], accumulate: int = 1) -> Training:
    torch.manual_seed(3)
    model = Chain(block)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return strategy.prepare(model, optimizer, loss_of, accumulate=accumulate, callbacks=callbacks)


def data(rows: int, steps: int = 3) -> torch.Tensor:
    return torch.linspace(-1, 1, rows * steps * WIDTH).sin().reshape(rows * steps, WIDTH)


def losses_and_weights(training: Training, rows: int = ROWS, steps: int = 3) -> Any:
    losses = [float(training.step(batch)) for batch in training.batches(data(rows, steps), rows)]
    return losses, [value.clone() for value in training.model.state_dict().values()]  # type: ignore[attr-defined]


def same(one: Any, other: Any) -> bool:
    return one[0] == other[0] and all(
        torch.equal(first, second) for first, second in zip(one[1], other[1], strict=True)
    )


def living(training: Any, rows: int = ROWS) -> int:
    (batch,) = training.batches(data(rows, 1), rows)
    return living_bytes(training.model, lambda: float(training.step(batch)))


@pytest.mark.parametrize("block", [Block, Rectified])
def test_a_budget_is_kept_and_predicted(local: Strategy, block: Callable[[], nn.Module]) -> None:
    plain = prepared(local, block, [])
    expected, without = losses_and_weights(plain), living(plain)
    earlier, refused = 0, list[str]()
    for tenths in range(2, 11):
        callback = GradientCheckpointing(budget=tenths / 10)
        training = prepared(local, block, [callback])
        try:
            found = losses_and_weights(training)
        except CallbackError as error:
            refused.append(str(error))
            continue
        assert same(found, expected)
        chosen, counted = callback.plan, living(training)
        assert chosen is not None and chosen.budget is not None
        assert chosen.without_bytes == pytest.approx(without, rel=0.02, abs=BATCH)
        assert counted <= chosen.budget + SCALARS and earlier <= counted
        assert counted == pytest.approx(chosen.predicted_bytes, rel=0.05, abs=BATCH), f"{chosen}"
        assert len(chosen.costs) == BLOCKS and (len(chosen.layers) == 0) == (tenths == 10)
        earlier = counted
    assert len(refused) < 4 and all("with the best choice of layers they take" in message for message in refused)


def test_a_budget_holds_for_larger_batches(local: Strategy) -> None:
    budget, callback = 300_000, GradientCheckpointing(budget=300_000)
    training = prepared(local, Block, [callback], accumulate=2)
    losses_and_weights(training, 2 * ROWS)
    small = callback.plan
    assert small is not None and 0 < len(small.layers) < BLOCKS
    losses_and_weights(training, ROWS)
    assert callback.plan is small, "a smaller batch was planned for"
    losses_and_weights(training, 3 * ROWS, steps=1)
    large = callback.plan
    assert large is not None and large is not small
    assert len(large.layers) > len(small.layers)
    assert large.without_bytes == pytest.approx(1.5 * small.without_bytes, rel=0.01)
    assert living(training, 3 * ROWS) <= budget + SCALARS


def test_a_budget_below_the_floor_is_refused_with_the_floor(local: Strategy) -> None:
    with pytest.raises(CallbackError, match=r"they take .* bytes\): give at least that much"):
        losses_and_weights(prepared(local, Block, [GradientCheckpointing(budget=1000)]))
    before = [float(value.sum()) for value in (torch.ones(2), torch.ones(3))]  # hooks for saved tensors are gone
    assert before == [2.0, 3.0]


def test_a_budget_for_a_compiled_model(local: Strategy) -> None:
    callback = GradientCheckpointing(budget=0.6)
    training: Any = prepared(local, Rectified, [callback])
    expected, _ = losses_and_weights(prepared(local, Rectified, []))
    training.model.compile(backend="aot_eager")
    found, _ = losses_and_weights(training)
    assert found == pytest.approx(expected, rel=1e-6)
    assert callback.plan is not None and 0 < len(callback.plan.layers) < BLOCKS


def test_plan_measures_without_training() -> None:
    torch.manual_seed(0)
    model = Chain(Rectified)
    batch = data(ROWS, 1)
    loss_of(model, batch).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    stream = torch.get_rng_state()
    half, everything = plan(model, batch, loss_of, budget=0.5), plan(model, batch, loss_of)
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(
        parameter.grad is not None and torch.equal(parameter.grad, gradient)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert torch.equal(stream, torch.get_rng_state())
    assert all("forward" not in vars(block) for block in model.blocks)
    assert everything.layers == tuple(f"blocks.{number}" for number in range(BLOCKS))
    assert 0 < len(half.layers) < BLOCKS and half.budget == half.without_bytes // 2
    assert "blocks.0 ... blocks." in str(everything) and "recomputed" in str(half)
    with pytest.raises(OptionError, match="plan needs loss_fn"):
        plan(model, batch)


class Operators(TorchDispatchMode):
    """Counts matrix products with a bias, which only forward passes have."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func == torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("operators", "computed"),
    [(False, 2), (True, 1), ([torch.ops.aten.addmm], 1), (["aten::addmm"], 1), (["aten::gelu"], 2)],
)
def test_kept_operators_are_not_computed_again(local: Strategy, operators: Any, computed: int) -> None:
    expected = losses_and_weights(prepared(local, Block, []))
    training: Any = prepared(local, Block, [GradientCheckpointing(operators=operators)])
    assert same(losses_and_weights(training), expected)
    (batch,) = training.batches(data(ROWS, 1), ROWS)
    with Operators() as counter:
        float(training.step(batch))
    assert counter.count == 2 + computed * 2 * BLOCKS


@pytest.mark.parametrize("share", [0.5, 0.7, 0.85])
@pytest.mark.parametrize("block", [Block, Rectified])
def test_a_budget_counts_kept_operators(local: Strategy, block: Callable[[], nn.Module], share: float) -> None:
    """Where their results do not fit, layers are computed again whole."""
    callback = GradientCheckpointing(budget=share, operators=True)
    training = prepared(local, block, [callback])
    found = losses_and_weights(training)
    chosen, counted = callback.plan, living(training)
    assert chosen is not None and chosen.budget is not None and chosen.layers
    assert counted <= chosen.budget + SCALARS
    assert counted == pytest.approx(chosen.predicted_bytes, rel=0.05, abs=BATCH)
    assert same(found, losses_and_weights(prepared(local, block, [])))


def test_kept_operators_are_predicted_without_a_budget() -> None:
    """The first step, which measures, keeps none of them."""
    model = Chain()
    found = plan(model, data(ROWS, 1), loss_of, operators=True)
    assert found.operators == found.layers == tuple(f"blocks.{number}" for number in range(BLOCKS))
    for cost in found.costs:
        assert cost.operators is not None and 0 < cost.operators.seconds < cost.seconds
        # Beside the input: what both linear layers return, of which the second is four times smaller.
        assert cost.operators.kept_bytes == cost.input_bytes + ROWS * 5 * WIDTH * 4


def test_what_is_no_operator_is_refused(local: Strategy) -> None:
    with pytest.raises(CallbackError, match=r"no operator of PyTorch's dispatcher.*torch\.ops\.aten\.mm"):
        prepared(local, Block, [GradientCheckpointing(operators=[torch.matmul])])
