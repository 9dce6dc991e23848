"""Where calls of `batches` begin after a restart, their length, and the norm of the gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from farandole.adapters import DataError, OptionError, Progress, Strategy, StrategyStateError, Training, latest

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")

DATA = torch.linspace(-1, 1, 40).reshape(20, 2)


def prepare(strategy: Strategy, **options: float) -> Training:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), **options)


def program(training: Training, stop: int | None = None) -> list[float]:
    """Two phases with a call of `batches` each; `stop` steps at most."""
    losses = []
    for epochs, seed in ((2, 0), (3, 1)):
        for batch in training.batches(DATA, 8, epochs=epochs, seed=seed):
            losses.append(float(training.step(batch)))
            if len(losses) == stop:
                return losses
    return losses


@pytest.mark.parametrize("stop", [1, 3, 5, 6, 7, 14, 15])
def test_a_program_started_again_goes_on_where_it_was(strategy: Strategy, tmp_path: Path, stop: int) -> None:
    whole = program(prepare(strategy))
    assert len(whole) == 15
    first = prepare(strategy)
    begun = program(first, stop)
    first.save(tmp_path / "saved", first.progress)

    again = prepare(strategy)
    assert again.load(tmp_path / "saved") == again.progress == first.progress
    assert begun + program(again) == whole
    assert again.progress == Progress(3, 0, loop=1)


def test_other_batches_in_the_middle_of_an_epoch_are_refused(strategy: Strategy, tmp_path: Path) -> None:
    first = prepare(strategy)
    for step, batch in enumerate(first.batches(DATA, 8, epochs=2)):
        first.step(batch)
        if step in (1, 2):
            first.save(tmp_path / f"saved{step}", first.progress)
    again = prepare(strategy)
    middle = again.load(tmp_path / "saved1")
    assert middle == Progress(0, 2)
    refusal = r"Progress\(epoch=0, step=2\) was reached with global_batch_size=8, and with 4 .* start=Progress\(1, 0\)"
    for start in (None, middle):
        with pytest.raises(DataError, match=refusal):
            again.batches(DATA, 4, epochs=2, start=start)
    assert len(again.batches(DATA, 8, epochs=2)) == 4, "a call that was refused has not begun"
    again = prepare(strategy)
    assert again.load(tmp_path / "saved2") == Progress(1)
    assert len(again.batches(DATA, 4, epochs=2)) == 5
    assert len(again.batches(DATA, 4, epochs=2, start=Progress(0, 2))) == 8, "nobody knows what these were counted in"


def test_a_call_has_a_length_that_counts_down(strategy: Strategy) -> None:
    training = prepare(strategy)
    batches = training.batches(DATA, 8, epochs=2)
    assert len(batches) == 6
    next(batches)
    assert len(batches) == 5
    assert len(list(batches)) == 5
    assert len(batches) == 0
    assert len(training.batches(DATA, 8, epochs=2, start=Progress(1, 1))) == 2
    assert len(training.batches(DATA, 8, epochs=2, start=Progress(5, 0))) == 0


def test_a_load_in_the_middle_of_a_program_goes_back(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy)
    losses = []
    for batch in training.batches(DATA, 8, epochs=2):
        losses.append(float(training.step(batch)))
        if len(losses) == 2:
            training.save(tmp_path / "saved", training.progress)
    training.load(tmp_path / "saved")
    assert [float(training.step(batch)) for batch in training.batches(DATA, 8, epochs=2)] == losses[2:]


def test_a_start_of_ones_own_is_taken(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy)
    training.save(tmp_path / "saved", Progress(1, 2))
    training.load(tmp_path / "saved")
    (batch,) = training.batches(DATA, 8, epochs=1, start=Progress(0, 2))
    assert batch.progress == Progress(1, 0)


def test_a_call_with_a_start_of_ones_own_is_counted(strategy: Strategy, tmp_path: Path) -> None:
    def phases(training: Training) -> list[list[Progress]]:
        calls: list[list[Progress]] = []
        for seed, start in ((0, None), (1, Progress()), (2, None)):
            calls.append([])
            for batch in training.batches(DATA, 20, epochs=2, seed=seed, start=start):
                training.step(batch)
                calls[-1].append(batch.progress)
                training.save(tmp_path / f"{seed}-{batch.progress.epoch}", batch.progress, keep=1)
        return calls

    assert phases(prepare(strategy)) == [[Progress(1, loop=loop), Progress(2, loop=loop)] for loop in range(3)]
    assert latest(tmp_path) == str(tmp_path / "2-2")

    again = prepare(strategy)
    progress = again.load(tmp_path / "2-2")
    assert progress == Progress(2, loop=2)
    first, second, third = phases(again)
    assert (first, third) == ([], []), "calls that were complete train no more"
    assert second == [Progress(1, loop=1), Progress(2, loop=1)], "a start of one's own is taken"


def test_a_start_at_the_position_continues_its_call(strategy: Strategy) -> None:
    """As in programs with a call for each epoch, which make fewer of them when they are started again."""
    training = prepare(strategy)
    for epoch in range(3):
        for batch in training.batches(DATA, 20, epochs=epoch + 1, start=Progress(epoch)):
            training.step(batch)
        assert training.progress == Progress(epoch + 1)


def test_another_batch_size_is_refused_at_once(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy)
    training.save(tmp_path / "saved", Progress(0, 2))
    training.load(tmp_path / "saved")
    with pytest.raises(DataError, match="cannot start at step 2: an epoch has 1 steps"):
        training.batches(DATA, 20)


def test_a_manifest_says_of_calls_only_where_there_were_several(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy)
    training.save(tmp_path / "saved", Progress(1, 2))
    assert "loop" not in (tmp_path / "saved" / "manifest.json").read_text()
    training.save(tmp_path / "saved", Progress(1, 2, loop=3))
    assert training.load(tmp_path / "saved") == Progress(1, 2, loop=3)


def test_a_later_call_is_further() -> None:
    assert Progress(0, 1, loop=1) > Progress(5, 3)
    assert repr(Progress(5, 3)) == "Progress(epoch=5, step=3)"
    assert repr(Progress(5, 3, loop=1)) == "Progress(epoch=5, step=3, loop=1)"


@pytest.mark.parametrize("options", [{"clip_norm": 1e-3}, {"clip_norm": 1e-3, "accumulate": 3}, {"grad_norm": True}])
def test_the_norm_is_that_before_clipping(strategy: Strategy, options: dict[str, float]) -> None:
    training = prepare(strategy, **options)
    plain = prepare(strategy).model
    plain(DATA).square().mean().backward()
    norm = torch.cat([parameter.grad.flatten() for parameter in plain.parameters()]).norm()
    (batch,) = training.batches(DATA, 20)
    with pytest.raises(StrategyStateError, match="there was none yet"):
        _ = training.grad_norm
    training.step(batch)
    assert float(training.grad_norm) == pytest.approx(norm.item(), rel=1e-6)


def test_a_norm_that_nobody_asked_for_is_not_there(strategy: Strategy) -> None:
    training = prepare(strategy)
    (batch,) = training.batches(DATA, 20)
    training.step(batch)
    with pytest.raises(OptionError, match="clip_norm or grad_norm=True"):
        _ = training.grad_norm


class Modes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.trained = nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trained(self.frozen(x))


def test_an_evaluation_leaves_modes_and_statistics(strategy: Strategy) -> None:
    model = Modes()
    model.frozen.eval()
    training = strategy.prepare(model, torch.optim.SGD(model.parameters()), lambda m, x: m(x).mean())
    before = [buffer.clone() for buffer in model.buffers()]
    seen = []

    def fn(model: nn.Module, x: torch.Tensor) -> float:
        seen.append((model.training, torch.is_grad_enabled()))
        return model(x).mean()

    training.evaluate(DATA, fn, 8)
    assert set(seen) == {(False, False)}
    assert all(map(torch.equal, before, model.buffers()))
    assert (model.training, model.frozen.training, model.trained.training) == (True, False, True)
    with pytest.raises(ZeroDivisionError):
        training.evaluate(DATA, lambda m, x: 1 / 0, 8)
    assert (model.training, model.frozen.training, model.trained.training) == (True, False, True)
