"""Gradient checkpointing in PyTorch: the same numbers to the bit as without, or a refusal that names the layer."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from farandole.adapters import CallbackError, OptionError, Strategy, create_strategy
from farandole.plugins.gradient_checkpointing import GradientCheckpointing

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")

WIDTH, BLOCKS = 8, 3


@pytest.fixture
def local(no_launcher: None) -> Iterator[Strategy]:
    with create_strategy("local", device="cpu") as strategy:
        yield strategy


class Block(nn.Module):
    """A residual block with dropout; it counts its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.wide = nn.Linear(WIDTH, 4 * WIDTH)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH)
        self.dropout = nn.Dropout(0.3)
        self.passes = 0

    def forward(self, x: torch.Tensor) -> Any:
        self.passes += 1
        return x + self.dropout(self.narrow(functional.gelu(self.wide(self.norm(x)))))


class Chain(nn.Module):
    """Blocks one after the other."""

    def __init__(self, block: Callable[[], nn.Module] = Block) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, x: torch.Tensor) -> Any:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Normalized(Block):
    """With BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)  # type: ignore[assignment]


class Spectral(Block):
    """With a buffer that the forward pass both reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        nn.utils.parametrizations.spectral_norm(self.wide)


class Arguments(Block):
    """With keyword arguments, arguments that are no tensors, and a list that it appends to."""

    def forward(self, x: torch.Tensor, pair: Any, *, scale: float, extra: Any, seen: Any) -> Any:  # type: ignore[override]
        seen.append(x)
        first, second = pair
        return super().forward(x * scale + (first * second["deep"] + extra.mean()).tanh()), len(seen)


class GivingArguments(Chain):
    def __init__(self) -> None:
        super().__init__(Arguments)
        self.gate = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> Any:
        seen: list[torch.Tensor] = []
        for number, block in enumerate(self.blocks):
            pair = (self.gate, {"deep": x.tanh()})
            x, count = block(x, pair, scale=0.5, extra=self.gate * x, seen=seen)
            assert count == len(seen) == number + 1
        return self.head(x)


class Shared(Chain):
    """One block in two places, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks[2] = self.blocks[0]


class Tied(nn.Module):
    """An embedding, sparse or not, whose weight is also that of the last layer."""

    def __init__(self, sparse: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, WIDTH, sparse=sparse)
        self.chain = Chain()
        self.blocks = self.chain.blocks
        self.chain.head = nn.Linear(WIDTH, 5, bias=False)
        if not sparse:
            self.chain.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> Any:
        return self.chain(self.embedding(x[:, 0].gt(0).long()))


def half_frozen() -> nn.Module:
    model = Chain()
    model.blocks[0].requires_grad_(False)
    model.blocks[1].wide.requires_grad_(False)
    return model


def plain_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    output: torch.Tensor = model(x)
    return output.square().mean()


def mixed_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return plain_loss(model, x)


def twice_loss(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return plain_loss(model, x) + plain_loss(model, -x)


Case = tuple[Callable[[], nn.Module], Any, Callable[[nn.Module, torch.Tensor], torch.Tensor]]

CASES: dict[str, Case] = {
    "dropout": (Chain, "blocks", plain_loss),
    "autocast": (Chain, "blocks", mixed_loss),
    "two passes": (lambda: Chain(Normalized), "blocks", twice_loss),
    "BatchNorm": (lambda: Chain(Normalized), "blocks", plain_loss),
    "spectral norm": (lambda: Chain(Spectral), "blocks", plain_loss),
    "arguments": (GivingArguments, "blocks", plain_loss),
    "shared layer": (Shared, [Block], plain_loss),
    "tied weights": (Tied, ["*", lambda layer: layer.name == "chain"], plain_loss),
    "sparse gradients": (lambda: Tied(sparse=True), "*", plain_loss),
    "frozen": (half_frozen, "blocks.*", plain_loss),
}


def train(
    strategy: Strategy, case: str, callbacks: list[GradientCheckpointing]
) -> tuple[list[float], dict[str, torch.Tensor], nn.Module]:
    build, _, loss_fn = CASES[case]
    torch.manual_seed(3)
    model = build()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
    training = strategy.prepare(model, optimizer, loss_fn, accumulate=2, callbacks=callbacks)
    data = torch.linspace(-1, 1, 16 * WIDTH).sin().reshape(16, WIDTH)
    losses = [float(training.step(batch)) for batch in training.batches(data, 6, epochs=2)]
    return losses, {name: value.clone() for name, value in model.state_dict().items()}, model


@pytest.mark.parametrize("case", CASES)
def test_a_training_is_the_same_to_the_bit(local: Strategy, case: str) -> None:
    losses, weights, plain = train(local, case, [])
    again, checkpointed, model = train(local, case, [GradientCheckpointing(CASES[case][1])])
    assert again == losses and all(map(math.isfinite, losses))
    assert list(checkpointed) == list(weights)
    assert all(torch.equal(checkpointed[name], weight) for name, weight in weights.items())
    passes = [
        (block.passes, other.passes)
        for block, other in zip(model.modules(), plain.modules(), strict=True)
        if isinstance(block, Block) and isinstance(other, Block) and case != "frozen"
    ]
    assert all(computed == 2 * once for computed, once in passes), "nothing was computed again"


def pass_through(model: nn.Module, apply: bool = True, **options: Any) -> GradientCheckpointing:
    """Checkpoint a model, and run one step."""
    callback = GradientCheckpointing(options.pop("layers", "blocks"), **options)
    with create_strategy("local", device="cpu") as strategy:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        training = strategy.prepare(model, optimizer, plain_loss, callbacks=[callback] if apply else [])
        for batch in training.batches(torch.ones(4, WIDTH), 4):
            float(training.step(batch))
    return callback


def test_without_gradients_nothing_is_computed_again() -> None:
    model = Chain()
    callback = pass_through(model)
    passes = [block.passes for block in model.blocks]
    assert passes == [2] * BLOCKS
    with torch.no_grad():
        model(torch.ones(2, WIDTH))
    assert [block.passes for block in model.blocks] == [3] * BLOCKS
    model.eval()
    model(torch.ones(2, WIDTH)).sum().backward()  # a frozen BatchNorm is trained so
    assert [block.passes for block in model.blocks] == [5] * BLOCKS
    callback.unapply()
    model(torch.ones(2, WIDTH)).sum().backward()
    assert [block.passes for block in model.blocks] == [6] * BLOCKS


def test_names_copies_and_pickles_of_the_model_stay_right() -> None:
    plain, model = Chain(), Chain()
    before = dict(vars(model.blocks[0]))
    callback = pass_through(model)
    assert list(plain.state_dict()) == list(model.state_dict())
    assert [name for name, _ in plain.named_modules()] == [name for name, _ in model.named_modules()]
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.blocks[0].narrow.weight.fill_(7.0)
        other(torch.ones(2, WIDTH)).sum().backward()
        assert other.blocks[0].passes == 4 and model.blocks[0].passes == 2, "the copy ran the original"
        assert other.blocks[0].narrow.weight.grad is not None
    callback.unapply()
    assert vars(model.blocks[0]).keys() == before.keys()


def test_a_second_training_of_a_model_takes_the_place_of_the_first() -> None:
    model = Chain()
    pass_through(model)
    pass_through(model, layers="blocks.0")
    assert [block.passes for block in model.blocks] == [4, 3, 3]


def test_a_forward_pass_of_the_users_own_is_kept() -> None:
    model = Chain()
    own = model.blocks[0].forward
    called: list[int] = []

    def patched(x: torch.Tensor) -> Any:
        called.append(1)
        return own(x)

    model.blocks[0].forward = patched  # type: ignore[method-assign]
    callback = pass_through(model)
    assert len(called) == 2
    callback.unapply()
    assert model.blocks[0].forward is patched


@pytest.mark.parametrize("block", [Block, Normalized])
def test_a_backward_pass_may_come_twice(block: Callable[[], nn.Module]) -> None:
    model = Chain(block)
    pass_through(model)
    model.zero_grad()
    loss = model(torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)).square().mean()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    loss.backward()
    twice = [parameter.grad for parameter in model.parameters()]
    assert all(one * 2 == pytest.approx(two) for one, two in zip(once, twice, strict=True))


def test_a_mode_that_changes_before_backward_changes_nothing() -> None:
    """Dropout would draw no mask while it is computed again."""
    model = Chain()
    pass_through(model)
    gradients = []
    for switch in (False, True):
        model.train()
        model.zero_grad()
        torch.manual_seed(1)
        loss = model(torch.ones(4, WIDTH)).square().mean()
        if switch:
            model.eval()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
        assert model.training is not switch
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


class OwnGenerator(Block):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x * torch.rand(WIDTH, generator=self.generator))


class Counting(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x) * (self.passes + 1)


class OtherShapes(Block):
    def forward(self, x: torch.Tensor) -> Any:
        output = super().forward(x)
        return output.repeat(self.passes, 1)[: len(x)] if self.passes % 2 else output.repeat(2, 1)


class InPlace(Block):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(functional.relu(x, inplace=True))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (OwnGenerator, r"layer 'blocks.\d' returns something else when it is computed again.*generator of its own"),
        (Counting, r"layer 'blocks.\d' returns something else"),
        (OtherShapes, r"layer 'blocks.\d' returns something else"),
        (InPlace, r"layer 'blocks.0' changes its input in place"),
    ],
)
def test_a_layer_that_cannot_be_computed_again_is_refused(block: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pass_through(Chain(block))


def test_a_cache_is_refused() -> None:
    class Caching(Block):
        def forward(self, x: torch.Tensor, past_key_values: Any = None) -> Any:
            return super().forward(x)

    model = Chain(Caching)
    pass_through(model)
    with pytest.raises(OptionError, match="set use_cache=False in the model's config"):
        model.blocks[0](torch.ones(2, WIDTH), past_key_values=object())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "block.*"}, r"matches no layer. Did you mean 'blocks"),
        ({"offload": True}, "the model is on the CPU"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(CallbackError, match=message):
        pass_through(Chain(), **options)


def test_a_model_that_checkpoints_itself_is_refused() -> None:
    """The attribute is that of Hugging Face's models."""
    model = Chain()
    model.gradient_checkpointing = True  # type: ignore[assignment]
    with pytest.raises(CallbackError, match=r"call model.gradient_checkpointing_disable\(\) before"):
        pass_through(model)


@pytest.mark.parametrize(
    ("block", "whole", "options"), [(Block, True, {}), (Block, False, {"operators": True}), (Normalized, True, {})]
)
def test_a_compiled_model_has_the_same_gradients(
    block: Callable[[], nn.Module], whole: bool, options: dict[str, Any]
) -> None:
    """Its first pass is not compiled; later ones are, of layers that write no buffers."""

    def gradients(callback: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = Chain(block)
        for layer in model.blocks:
            layer.dropout.p = 0.0  # compiled code draws other masks
        if callback:
            for compiled in [model] if whole else model.blocks:
                compiled.compile(backend="aot_eager")
        pass_through(model, apply=callback, **options)
        for _ in range(2):
            model.zero_grad()
            plain_loss(model, torch.linspace(-1, 1, 4 * WIDTH).reshape(4, WIDTH)).backward()
        return [*(parameter.grad for parameter in model.parameters() if parameter.grad is not None), *model.buffers()]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-6)
