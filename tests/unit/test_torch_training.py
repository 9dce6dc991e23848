"""The training step in one process, against the same step written by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from farandole.adapters import (
    Batch,
    DataError,
    OptionError,
    Progress,
    Strategy,
    StrategyStateError,
)
from farandole.adapters.torch.placeholder import without_side_effects

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")

LENGTH, BATCH, EPOCHS, SEED = 23, 7, 3, 5  # the last batch has 2 samples: with 3 micro-batches, one is empty


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 1)).double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(LENGTH, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, x.sin().sum(1, keepdim=True)


def mse(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def sgd(model: nn.Module, lr: float = 0.03) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)


def steps() -> Iterator[torch.Tensor]:
    """The samples of each step, by the published definition of the order."""
    for epoch in range(EPOCHS):
        stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([SEED, epoch])))
        yield from torch.from_numpy(stream.permutation(LENGTH)).split(BATCH)


def distance(model: nn.Module, other: nn.Module) -> float:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((one - two).abs().max()) for one, two in pairs)


@pytest.mark.parametrize("accumulate", [1, 3, 8])
@pytest.mark.parametrize("make_optimizer", [sgd, adamw])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
@pytest.mark.parametrize("decay", [False, True])
def test_a_step_is_the_step_written_by_hand_on_the_whole_global_batch(
    strategy: Strategy, accumulate: int, make_optimizer: Callable[..., Any], clip_norm: float | None, decay: bool
) -> None:
    x, y = data()
    plain = net()
    optimizer = make_optimizer(plain)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.7) if decay else None
    expected = []
    for indices in steps():
        loss = mse(plain, (x[indices], y[indices]))
        optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            assert torch.nn.utils.clip_grad_norm_(plain.parameters(), clip_norm) > clip_norm
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        expected.append(loss.item())

    model = net()
    own = make_optimizer(model)
    own_scheduler = torch.optim.lr_scheduler.StepLR(own, 2, 0.7) if decay else None
    training = strategy.prepare(model, own, mse, own_scheduler, accumulate, clip_norm)
    losses = [training.step(batch) for batch in training.batches((x, y), BATCH, epochs=EPOCHS, seed=SEED)]
    assert [float(loss) for loss in losses] == pytest.approx(expected, rel=0, abs=1e-12)
    assert distance(model, plain) < 1e-12
    assert training.model is model
    assert training.optimizer is own


def test_batches_say_where_they_stand(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), mse, accumulate=3)
    batches = list(training.batches(data(), BATCH, epochs=2))
    assert [batch.progress for batch in batches] == [
        *(Progress(0, 1), Progress(0, 2), Progress(0, 3), Progress(1, 0)),
        *(Progress(1, 1), Progress(1, 2), Progress(1, 3), Progress(2, 0)),
    ]
    assert [batch.weights for batch in batches[:4]] == [(3, 2, 2), (3, 2, 2), (3, 2, 2), (1, 1, 0)]
    assert [float(batch.global_weight) for batch in batches[:4]] == [7, 7, 7, 2]
    resumed = list(training.batches(data(), BATCH, epochs=2, start=Progress(0, 3)))
    assert [batch.progress for batch in resumed] == [batch.progress for batch in batches[3:]]
    assert all(torch.equal(one.micro[0][0], two.micro[0][0]) for one, two in zip(resumed, batches[3:], strict=True))


def masked_mean(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y, mask = batch
    return (functional.mse_loss(model(x), y, reduction="none").squeeze(1) * mask).sum() / mask.sum()


def masks() -> torch.Tensor:
    return 1.0 + torch.arange(LENGTH) % 4 * 2.0


def test_a_weight_function_makes_the_mean_one_over_what_it_counts(strategy: Strategy) -> None:
    x, y = data()
    mask = masks()
    plain = net()
    optimizer = sgd(plain, 0.01)
    expected = []
    for indices in steps():
        loss = masked_mean(plain, (x[indices], y[indices], mask[indices]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())

    model = net()
    training = strategy.prepare(model, sgd(model, 0.01), masked_mean, accumulate=3)
    placeholders = 0
    losses = []
    for batch in training.batches((x, y, mask), BATCH, epochs=EPOCHS, seed=SEED, weight=lambda part: part[2].sum()):
        losses.append(float(training.step(batch)))
        assert float(batch.global_weight) == sum(batch.weights)
        placeholders += batch.weights.count(0.0)
    assert losses == pytest.approx(expected, rel=0, abs=1e-12)
    assert distance(model, plain) < 1e-12
    assert placeholders == EPOCHS  # a placeholder counts nothing, whatever weight the function returns


def test_a_micro_batch_in_which_nothing_counts_changes_nothing(strategy: Strategy) -> None:
    """All its labels are padding, so its own mean loss is not a number."""
    x, labels = torch.randn(4, 4, dtype=torch.float64), torch.tensor([0, 0, -100, -100])

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(model(batch[0]).expand(-1, 2) * torch.tensor([1.0, -1.0]), batch[1])

    plain = net()
    optimizer = sgd(plain)
    expected = loss_fn(plain, (x, labels))
    expected.backward()
    optimizer.step()
    model = net()
    training = strategy.prepare(model, sgd(model), loss_fn, accumulate=2)
    (batch,) = training.batches((x, labels), 4, shuffle=False, weight=lambda part: (part[1] >= 0).sum())
    assert batch.weights == (2.0, 0.0)
    assert float(training.step(batch)) == pytest.approx(expected.item(), rel=0, abs=1e-12)
    assert distance(model, plain) < 1e-12


@pytest.mark.parametrize("weight", [0.0, float("nan")])
def test_weights_that_add_up_to_nothing_have_no_mean(strategy: Strategy, weight: float) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), mse, accumulate=2)
    with pytest.raises(DataError, match="weight"):
        training.step(next(training.batches(data(), BATCH, weight=lambda part: weight)))
    assert distance(model, net()) == 0


def test_a_loss_of_nothing_is_refused_before_it_reaches_the_weights(strategy: Strategy) -> None:
    """A mean over no tokens is NaN, and NaN times a weight of 0 is NaN."""
    model = net()
    before = [weight.clone() for weight in model.parameters()]
    weights = iter([0.0, 3.0])
    training = strategy.prepare(model, sgd(model), lambda m, b: mse(m, b) * float("nan"), accumulate=2)
    with pytest.raises(DataError, match=r"not finite for a micro-batch of weight 0.*divide by at least 1"):
        training.step(next(training.batches(data(), BATCH, weight=lambda part: next(weights))))
    assert all(map(torch.equal, before, model.parameters()))


def test_a_negative_weight_is_refused(strategy: Strategy) -> None:
    model = net()
    weights = iter([-1.0, 3.0])
    training = strategy.prepare(model, sgd(model), mse, accumulate=2)
    with pytest.raises(DataError, match=r"weight\(micro_batch\) returned -1\.0"):
        next(training.batches(data(), BATCH, weight=lambda part: next(weights)))


class Noisy(nn.Module):
    """Batch statistics and dropout, which a placeholder for an empty share must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.out = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.drop(self.norm(x)))


def noisy() -> Noisy:
    torch.manual_seed(0)
    return Noisy().double()


@pytest.mark.parametrize("place", [0, 1])
def test_a_placeholder_leaves_no_trace(strategy: Strategy, place: int) -> None:
    x, y = data()
    real, placeholder = (x[:5], y[:5]), (x[[6, 6]], y[[6, 6]])
    models, losses, streams = [], [], []
    for accumulate in (1, 2):
        model = noisy()
        training = strategy.prepare(model, sgd(model), mse, accumulate=accumulate)
        micro, weights = [real], [5.0]
        if accumulate == 2:
            micro.insert(place, placeholder)
            weights.insert(place, 0.0)
        for _ in range(3):
            losses.append(float(training.step(Batch(tuple(micro), tuple(weights), 5.0, Progress(0, 1)))))
        models.append(model)
        streams.append(torch.get_rng_state())
    assert losses[:3] == losses[3:]
    assert distance(*models) == 0
    assert int(models[0].norm.num_batches_tracked) == 3
    assert torch.equal(*streams)


class Tracing(Noisy):
    """Backward looks at one buffer, and forward puts another in the place of one."""

    gain: torch.Tensor
    average: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("gain", torch.full((1,), 2.0))
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x) * self.gain
        self.average = 0.9 * self.average + 0.1 * output.detach().mean()
        return output


def test_backward_of_a_placeholder_may_come_later() -> None:
    model = Tracing()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with without_side_effects(model):
        output = model(torch.ones(2, 4))
    output.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())


def run(strategy: Strategy, model: nn.Module, start: Progress) -> list[float]:
    training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), mse)
    batches = training.batches(data(), BATCH, epochs=EPOCHS, seed=SEED, start=start)
    return [float(training.step(batch)) for batch in batches]


def test_dropout_draws_after_a_resume_what_it_would_have_drawn(strategy: Strategy) -> None:
    model = noisy()
    training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), mse)
    whole = []
    for batch in training.batches(data(), BATCH, epochs=EPOCHS, seed=SEED):
        whole.append(float(training.step(batch)))
        if len(whole) == 6:
            state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            place = batch.progress
    resumed = noisy()
    resumed.load_state_dict(state)
    torch.manual_seed(12345)
    assert run(strategy, resumed, place) == whole[6:]
    assert distance(resumed, model) == 0


def test_dropout_draws_something_else_in_each_step_and_for_each_seed(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), mse)
    seeds = [
        batch.random_seed for seed in (0, 1) for batch in training.batches(data(), BATCH, epochs=EPOCHS, seed=seed)
    ]
    assert len(set(seeds)) == len(seeds) == 24
    assert None not in seeds


def test_a_batch_without_a_seed_leaves_the_random_stream_alone(strategy: Strategy) -> None:
    plain, model = noisy(), noisy()
    training = strategy.prepare(model, sgd(model), mse)
    torch.manual_seed(7)
    expected = mse(plain, data()).item()
    torch.manual_seed(7)
    assert float(training.step(Batch((data(),), (23.0,), 23.0, Progress(0, 1)))) == expected


def test_a_parameter_without_a_gradient_is_neither_updated_nor_decayed(strategy: Strategy) -> None:
    model = net()
    model.add_module("unused", nn.Linear(3, 3).double())
    model.forward = lambda x: model[2](model[1](model[0](x)))  # type: ignore[method-assign]
    model[0].bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    training = strategy.prepare(model, adamw(model), mse, accumulate=2, clip_norm=1.0)
    for batch in training.batches(data(), BATCH):
        training.step(batch)
    unchanged = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert unchanged == {"unused.weight", "unused.bias", "0.bias"}


def test_a_parameter_that_a_step_does_not_use_keeps_nothing_of_the_step_before(strategy: Strategy) -> None:
    """With leftover zeros as a gradient, momentum and decay would continue."""
    model = net()
    model.add_module("other", nn.Linear(4, 1).double())
    used = iter([True, False])

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        x, y = batch
        return functional.mse_loss(model[:3](x) + (model.other(x) if next(used) else 0), y)

    training = strategy.prepare(model, adamw(model), loss_fn)
    first, second, *_ = training.batches(data(), BATCH)
    training.step(first)
    before = model.other.weight.clone()
    training.step(second)
    assert torch.equal(model.other.weight, before)
    assert not torch.equal(model[0].weight, net()[0].weight)


def test_a_parameter_that_is_unfrozen_later_is_refused(strategy: Strategy) -> None:
    """DDP, Horovod and ZeRO recorded what is trained: on each worker the rest would train differently."""
    model = net()
    model[0].requires_grad_(False)
    training = strategy.prepare(model, sgd(model), mse)
    batches = training.batches(data(), BATCH)
    training.step(next(batches))
    model[0].requires_grad_(True)
    with pytest.raises(OptionError, match="was frozen when the model was prepared"):
        training.step(next(batches))


def test_a_learning_rate_that_is_changed_acts(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), mse)
    first, second, *_ = training.batches(data(), BATCH)
    training.optimizer.param_groups[0]["lr"] = 0.0
    training.step(first)
    assert distance(model, net()) == 0
    training.optimizer.param_groups[0]["lr"] = 0.1
    training.step(second)
    assert distance(model, net()) > 0


def test_a_loss_that_was_not_read_can_still_be_read_later(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), mse)
    first, second, *_ = training.batches(data(), BATCH)
    unread = training.step(first)
    training.step(second)
    assert float(unread) == pytest.approx(mse(net(), first.micro[0]).item(), abs=1e-12)


def test_a_loss_of_one_element_is_a_scalar(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), lambda model, batch: mse(model, batch).reshape(1))
    batch = next(training.batches(data(), BATCH))
    assert float(training.step(batch)) == pytest.approx(mse(net(), batch.micro[0]).item(), abs=1e-12)


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (lambda loss: torch.stack([loss, loss, loss]), "a tensor of shape (3,)"),
        (lambda loss: loss.new_zeros(0), "a tensor of shape (0,)"),
        (lambda loss: loss.item(), "float"),
        (lambda loss: None, "NoneType"),
        (lambda loss: (loss, "accuracy"), "tuple"),
        (lambda loss: {"loss": loss}, "dict"),
    ],
)
def test_what_is_no_scalar_loss_is_refused(strategy: Strategy, returned: Callable[..., Any], kind: str) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), lambda model, batch: returned(mse(model, batch)))
    with pytest.raises(OptionError) as caught:
        training.step(next(training.batches(data(), BATCH)))
    assert "loss_fn must return the mean loss of a micro-batch, a scalar tensor" in str(caught.value)
    assert str(caught.value).endswith(f"returned {kind}")


def test_an_error_of_the_loss_function_comes_through_as_it_is(strategy: Strategy) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        raise ZeroDivisionError("mine")

    model = net()
    training = strategy.prepare(model, sgd(model), loss_fn)
    with pytest.raises(ZeroDivisionError, match="mine"):
        training.step(next(training.batches(data(), BATCH)))


@pytest.mark.parametrize(("own", "given"), [(1, 2), (3, 2)])
def test_a_batch_cut_for_another_training_is_refused(strategy: Strategy, own: int, given: int) -> None:
    model, other = net(), net()
    training = strategy.prepare(model, sgd(model), mse, accumulate=own)
    batches = strategy.prepare(other, sgd(other), mse, accumulate=given).batches(data(), BATCH)
    with pytest.raises(OptionError, match=f"the batch has {given} micro-batches, but accumulate={own}"):
        training.step(next(batches))


def frozen() -> nn.Sequential:
    model = net()
    model.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make_model", "make_optimizer", "make_scheduler", "said"),
    [
        pytest.param(net, lambda m: torch.optim.LBFGS(m.parameters()), None, "use another optimizer", id="LBFGS"),
        pytest.param(
            net, sgd, torch.optim.lr_scheduler.ReduceLROnPlateau, r"call its step\(metric\) yourself", id="plateau"
        ),
        pytest.param(net, lambda m: sgd(net(1)), None, "parameters that the model does not", id="another model's"),
        pytest.param(
            net,
            lambda m: torch.optim.SGD([*m.parameters(), nn.Parameter(torch.ones(1))], lr=0.1),
            None,
            "build the optimizer from model.parameters",
            id="one parameter more",
        ),
        pytest.param(frozen, sgd, None, "no parameter that requires a gradient", id="all frozen"),
        pytest.param(nn.GELU, lambda m: sgd(net()), None, "no parameter that requires a gradient", id="no parameters"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    strategy: Strategy, make_model: Any, make_optimizer: Any, make_scheduler: Any, said: str
) -> None:
    model = make_model()
    optimizer = make_optimizer(model)
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    with pytest.raises(OptionError, match=said):
        strategy.prepare(model, optimizer, mse, scheduler)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"accumulate": 0}, "accumulate=0 must be at least 1"),
        ({"clip_norm": 0.0}, "clip_norm=0.0 must be positive; None does not clip"),
        ({"clip_norm": -1.0}, "clip_norm=-1.0"),
        ({"clip_norm": float("nan")}, "clip_norm=nan"),
    ],
)
def test_an_argument_out_of_range_is_refused(strategy: Strategy, argument: dict[str, Any], said: str) -> None:
    model = net()
    with pytest.raises(OptionError, match=said):
        strategy.prepare(model, sgd(model), mse, **argument)


def test_a_training_refuses_bad_data_before_the_first_step(strategy: Strategy) -> None:
    model = net()
    training = strategy.prepare(model, sgd(model), mse)
    with pytest.raises(DataError, match="length 0"):
        training.batches((torch.zeros(0, 4), torch.zeros(0, 1)), BATCH)
    with pytest.raises(DataError, match="differ in length"):
        training.batches((torch.zeros(3, 4), torch.zeros(2, 1)), BATCH)
    with pytest.raises(OptionError, match="global_batch_size=0"):
        training.batches(data(), 0)
    with pytest.raises(OptionError, match="'batch_size'"):
        training.batches(data(), BATCH, batch_size=3)
    with pytest.raises(DataError, match="cannot start at step 5: an epoch has 4 steps"):
        next(training.batches(data(), BATCH, start=Progress(0, 5)))


@pytest.mark.parametrize(
    ("label", "ignored", "options", "warns"),
    [
        (-100, -100, {}, True),
        (0, 0, {}, True),  # by the loss that is given
        (-100, -100, {"weight": lambda batch: (batch[1] != -100).sum()}, False),
        (0, -100, {}, False),
    ],
)
def test_labels_that_a_loss_ignores_are_warned_of_once_where_nothing_says_how_much_they_count(
    strategy: Strategy, label: int, ignored: int, options: dict[str, Any], warns: bool
) -> None:
    class Loss(nn.Module):
        ignore_index = ignored

        def forward(self, model: nn.Module, batch: Any) -> torch.Tensor:
            return functional.cross_entropy(model(batch[0]), batch[1], ignore_index=ignored)

    model = nn.Linear(4, 3).double()
    training = strategy.prepare(model, sgd(model), Loss(), accumulate=2)
    labels = torch.tensor([label, 1, 2, 1] * 6)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in training.batches((torch.ones(24, 4, dtype=torch.float64), labels), 8, epochs=2, **options):
            training.step(batch)
    said = [str(each.message) for each in caught if "labels are" in str(each.message)]
    assert len(said) == warns
    if warns:
        assert f"labels are {label}" in said[0] and "weight=" in said[0]
        (own,) = (each for each in caught if str(each.message) == said[0])
        assert own.filename == __file__


def test_an_engine_may_step_the_optimizer_while_backward_runs(strategy: Strategy) -> None:
    """As Horovod's Adasum does."""
    model = net()
    training: Any = strategy.prepare(model, sgd(model), mse)
    backward = training.engine.backward

    def stepping(loss: torch.Tensor) -> None:
        backward(loss)
        training.optimizer.step()

    training.engine.backward = stepping
    batches = training.batches(data(), BATCH)
    training.step(next(batches))
    with pytest.raises(StrategyStateError, match=r"by hand.* are local\. Write training\.step\(batch\)"):
        training.optimizer.step()
