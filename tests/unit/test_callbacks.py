"""What callbacks get in a loop, what they keep, and what happens if one fails."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farandole.adapters import (
    Callback,
    CallbackError,
    OptionError,
    Progress,
    Run,
    StepRecord,
    Strategy,
    Training,
    Worker,
    WorkerLostError,
    create_strategy,
)
from farandole.adapters.seam import Seam

pytestmark = pytest.mark.usefixtures("no_launcher", "one_thread")

DATA = torch.linspace(-1, 1, 40).reshape(20, 2)


class Watcher(Callback):
    watches = frozenset({"data", "forward", "backward", "update", "save", "load"})

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.kept: dict[str, Any] = {}

    def on_prepare(self, model: nn.Module, run: Run) -> None:
        self.calls.append(("prepare", type(model).__name__))

    def on_begin(self, run: Run) -> None:
        self.calls.append(("begin", (run.strategy.name, run.frontend, run.progress)))

    def on_step_begin(self, progress: Progress) -> None:
        self.calls.append(("step begin", progress))

    def on_step_end(self, step: StepRecord) -> None:
        self.calls.append(("step end", step))

    def on_end(self, error: BaseException | None) -> None:
        self.calls.append(("end", error))

    def state_dict(self) -> dict[str, Any]:
        return self.kept

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kept = state


def prepare(strategy: Strategy, callbacks: Sequence[Callback], **options: Any) -> Training:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return strategy.prepare(model, optimizer, lambda m, x: m(x).square().mean(), callbacks=callbacks, **options)


def test_a_watcher_sees_each_step_and_changes_nothing(tmp_path: Path) -> None:
    watcher = Watcher()
    with create_strategy("local") as strategy:
        plain = prepare(strategy, [], accumulate=2)
        expected = [float(plain.step(batch)) for batch in plain.batches(DATA, 8)]
        training = prepare(strategy, [watcher], accumulate=2)
        losses = []
        for batch in training.batches(DATA, 8):
            training.log("seen", float(len(losses)))
            losses.append(training.step(batch))
        training.save(tmp_path / "saved", training.progress)
        for batch in training.batches(DATA, 20):
            training.step(batch)
    assert list(map(float, losses)) == expected
    kinds = [kind for kind, _ in watcher.calls]
    assert kinds == ["prepare", "begin", *("step begin", "step end") * 4, "end"]
    assert watcher.calls[0][1] == "Linear"
    assert watcher.calls[1][1] == ("local", "loop", Progress())
    assert [what for kind, what in watcher.calls if kind == "step begin"] == [
        Progress(0, 1),
        Progress(0, 2),
        Progress(1, 0),
        Progress(1, 0, loop=1),
    ]
    records = [what for kind, what in watcher.calls if kind == "step end"]
    assert [record.progress for record in records[:3]] == [Progress(0, 1), Progress(0, 2), Progress(1, 0)]
    assert [record.logged for record in records] == [{"seen": 0.0}, {"seen": 1.0}, {"seen": 2.0}, {}]
    assert [float(record.loss) for record in records[:3]] == expected
    names = [(phase.name, phase.micro) for phase in records[0].phases]
    step = [("forward", 0), ("backward", 0), ("forward", 1), ("backward", 1), ("update", None)]
    assert names == [("data", None), *step]
    # After the last batch the data are asked once more, in vain; then come the save and the next call's.
    assert [phase.name for phase in records[3].phases][:3] == ["data", "save", "data"]
    ends = [time for phase in records[0].phases for time in (phase.start, phase.end)]
    assert ends == sorted(ends)
    assert records[0].seconds("forward") == pytest.approx(
        sum(phase.end - phase.start for phase in records[0].phases if phase.name == "forward")
    )
    assert records[0].seconds("load") == 0


def test_phases_that_nobody_watches_are_not_timed(strategy: Strategy) -> None:
    seen = []

    class Counter(Callback):
        watches = frozenset({"update"})

        def on_step_end(self, step: StepRecord) -> None:
            seen.append([phase.name for phase in step.phases])

    training = prepare(strategy, [Counter()])
    (batch,) = training.batches(DATA, 20)
    training.step(batch)
    assert seen == [["update"]]


def test_times_of_phases_inside_of_others_are_exclusive(strategy: Strategy) -> None:
    """As in Lightning, whose optimizer runs forward and backward; also of those that nobody watches."""
    watcher = Watcher()
    watcher.watches = frozenset({"update", "backward", "data"})
    seam = Seam([watcher], Worker())
    seam.begin_step(Progress(0, 1), Run(strategy, "loop", Progress()))
    begun = time.perf_counter()
    with seam.phase("update"):
        time.sleep(0.01)
        with seam.phase("forward", 0):
            time.sleep(0.02)
        with seam.phase("backward", 0):
            pass
    assert list(seam.each("data", [1, 2])) == [1, 2]
    seam.note("update", begun, begun + 5)
    seam.note("forward", begun, begun + 5)
    seam.end_step(Progress(0, 1), 0.0)
    (record,) = [what for _, what in watcher.calls if isinstance(what, StepRecord)]
    names = [phase.name for phase in record.phases]
    assert names == ["update", "update", "backward", "update", "data", "data", "data", "update"]
    first, again, *_ = record.phases
    assert first.end - first.start >= 0.01
    assert again.start - first.end >= 0.02


def test_a_property_that_fails_says_why() -> None:
    class Mine(Callback):
        @property
        def broken(self) -> int:
            return self.misspelt  # type: ignore[no-any-return]

    with pytest.raises(AttributeError, match="misspelt"):
        _ = Mine().broken


def test_what_is_told_between_two_steps_is_of_none(strategy: Strategy) -> None:
    watcher = Watcher()
    seam = Seam([watcher], Worker())
    seam.note("update", 0.0, 60.0)
    for step in (1, 2):
        seam.begin_step(Progress(0, step), Run(strategy, "loop", Progress()))
        seam.note("update", 100.0, 101.0)
        seam.end_step(Progress(0, step), 0.0)
        seam.note("update", 102.0, 160.0)
    records = [what for _, what in watcher.calls if isinstance(what, StepRecord)]
    assert [record.seconds("update") for record in records] == [1.0, 1.0]


def test_a_frontend_that_cannot_take_one_says_how(strategy: Strategy) -> None:
    with pytest.raises(AttributeError, match=r"farandole\.plugins\.lightning\.LightningCallback"):
        _ = Watcher().state_key
    with pytest.raises(AttributeError, match=r"'Watcher' object has no attribute 'kept_'$"):
        _ = Watcher().kept_


def test_what_changes_the_model_comes_before_the_engine(strategy: Strategy) -> None:
    class Freezes(Callback):
        def on_prepare(self, model: nn.Module, run: Run) -> None:
            model.bias.requires_grad_(False)

    training = prepare(strategy, [Freezes()])
    before = training.model.bias.clone()
    for batch in training.batches(DATA, 8):
        training.step(batch)
    assert torch.equal(training.model.bias, before)


def test_states_travel_by_kind_and_number(strategy: Strategy, tmp_path: Path) -> None:
    first, second = Watcher(), Watcher()
    first.kept, second.kept = {"n": 1}, {"n": 2}
    training = prepare(strategy, [first, Callback(), second])
    training.save(tmp_path / "saved", Progress(0, 1))
    again = [Watcher(), Watcher(), Watcher()]
    taken = prepare(strategy, again)
    taken.load(tmp_path / "saved")
    assert [watcher.kept for watcher in again] == [{"n": 1}, {"n": 2}, {}]
    prepare(strategy, []).load(tmp_path / "saved")


def test_a_manifest_without_states_is_as_it_was(strategy: Strategy, tmp_path: Path) -> None:
    prepare(strategy, [Callback()]).save(tmp_path / "saved", Progress())
    assert '"callbacks"' not in (tmp_path / "saved" / "manifest.json").read_text()


METHODS = ("on_prepare", "on_begin", "on_step_begin", "on_step_end", "on_end", "state_dict", "load_state_dict")


def run_with(callback: Callback, folder: Path) -> None:
    with create_strategy("local") as strategy:
        training = prepare(strategy, [callback])
        for batch in training.batches(DATA, 20):
            training.step(batch)
        training.save(folder, training.progress)
        training.load(folder)


@pytest.mark.parametrize("method", METHODS)
def test_the_callback_that_raises_is_named(method: str, tmp_path: Path) -> None:
    def wrong(*arguments: Any) -> None:
        raise ValueError("the mistake")

    watcher = Watcher()
    watcher.kept = {"n": 1}
    setattr(watcher, method, wrong)
    with pytest.raises(Exception, match=rf"Watcher\.{method} on worker 0 raised ValueError: the mistake"):
        run_with(watcher, tmp_path / "saved")


@pytest.mark.parametrize("method", METHODS)
def test_nonsense_that_one_returns_is_refused(method: str, tmp_path: Path) -> None:
    watcher = Watcher()
    watcher.kept = {"n": 1}
    setattr(watcher, method, lambda *arguments: 5)
    said = "returned what a checkpoint cannot hold" if method == "state_dict" else "returned 5"
    with pytest.raises(Exception, match=rf"Watcher\.{method} on worker 0 {said}"):
        run_with(watcher, tmp_path / "saved")


def test_what_no_checkpoint_can_hold_is_refused(strategy: Strategy, tmp_path: Path) -> None:
    watcher = Watcher()
    watcher.kept = {"n": object()}
    training = prepare(strategy, [watcher])
    with pytest.raises(Exception, match="returned what a checkpoint cannot hold: Object of type object"):
        training.save(tmp_path / "saved", Progress())


def test_the_programs_own_error_is_the_one_that_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    told = []

    class Wrong(Callback):
        def on_end(self, error: BaseException | None) -> None:
            told.append(error)
            raise ValueError("in the end")

    def program() -> None:
        with create_strategy("local") as strategy:
            training = prepare(strategy, [Wrong()])
            for batch in training.batches(DATA, 20):
                training.step(batch)
            raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        program()
    assert [type(error) for error in told] == [KeyError]
    assert "Wrong.on_end on worker 0 raised ValueError: in the end" in caplog.text


class Ends(Callback):
    """Keeps what `on_end` was given, in the order of the calls, and raises an error."""

    def __init__(self, told: list[BaseException | None], raises: BaseException | None = None) -> None:
        self._told = told
        self._raises = raises

    def on_end(self, error: BaseException | None) -> None:
        self._told.append(error)
        if self._raises is not None:
            raise self._raises


def test_an_end_that_fails_hides_no_other_end(caplog: pytest.LogCaptureFixture) -> None:
    told: list[BaseException | None] = []

    def program() -> None:
        with create_strategy("local") as strategy:
            for callbacks in ([Ends(told), Ends(told, ValueError("first")), Ends(told)], [Ends(told, OSError("last"))]):
                training = prepare(strategy, callbacks)
                for batch in training.batches(DATA, 20):
                    training.step(batch)

    with pytest.raises(CallbackError, match=r"Ends\.on_end on worker 0 raised ValueError: first") as caught:
        program()
    assert told == [None, None, caught.value, caught.value], "after an error they must call no collective"
    assert "raised OSError: last" in caplog.text


@pytest.mark.parametrize("own", [KeyError("own"), None])
def test_ctrl_c_in_an_end_leaves_the_strategy(own: BaseException | None) -> None:
    told: list[BaseException | None] = []

    def program() -> None:
        with create_strategy("local") as strategy:
            training = prepare(strategy, [Ends(told, KeyboardInterrupt())])
            for batch in training.batches(DATA, 20):
                training.step(batch)
            if own is not None:
                raise own

    with pytest.raises(KeyboardInterrupt):
        program()
    assert told == [own]
    with create_strategy("local"):
        pass


def test_a_step_that_fails_leaves_no_phases_to_the_next(strategy: Strategy) -> None:
    watcher, calls = Watcher(), []

    def loss_fn(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) == 2:
            raise ValueError("in the second micro-batch")
        return model(x).square().mean()

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    training = strategy.prepare(model, optimizer, loss_fn, accumulate=2, callbacks=[watcher])
    batches = training.batches(DATA, 10)
    with pytest.raises(ValueError, match="second micro-batch"):
        training.step(next(batches))
    training.step(next(batches))
    (record,) = [what for _, what in watcher.calls if isinstance(what, StepRecord)]
    assert [phase.name for phase in record.phases] == ["data", *("forward", "backward") * 2, "update"]


def test_one_that_raises_is_a_callback_error(strategy: Strategy) -> None:
    class Wrong(Callback):
        def on_step_end(self, step: StepRecord) -> None:
            raise ValueError("the mistake")

    training = prepare(strategy, [Wrong()])
    (batch,) = training.batches(DATA, 20)
    with pytest.raises(CallbackError) as caught:
        training.step(batch)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_lost_worker_is_not_the_callbacks_fault(strategy: Strategy) -> None:
    class Gathers(Callback):
        def on_step_end(self, step: StepRecord) -> None:
            raise WorkerLostError("worker 0 of 2 lost another worker of the job")

    training = prepare(strategy, [Gathers()])
    (batch,) = training.batches(DATA, 20)
    with pytest.raises(WorkerLostError, match="lost another worker"):
        training.step(batch)


def test_a_record_has_the_workers_samples_and_tokens(strategy: Strategy) -> None:
    watcher = Watcher()
    training = prepare(strategy, [watcher], accumulate=2, clip_norm=1.0)
    for weight in (None, lambda x: 10.0 * len(x)):
        for batch in training.batches(DATA, 8, weight=weight):
            training.step(batch)
    records = [what for kind, what in watcher.calls if kind == "step end"]
    assert [record.samples for record in records] == [8, 8, 4] * 2
    assert [record.tokens for record in records] == [None, None, None, 80.0, 80.0, 40.0]
    assert all(float(record.grad_norm) > 0 for record in records)
    plain = Watcher()
    training = prepare(strategy, [plain])
    (batch,) = training.batches(DATA, 20)
    training.step(batch)
    (record,) = [what for kind, what in plain.calls if kind == "step end"]
    assert record.grad_norm is None


@pytest.mark.parametrize("given", [Callback, print, None])
def test_what_is_no_callback_is_refused(strategy: Strategy, given: Any) -> None:
    with pytest.raises(OptionError, match=r"callbacks take instances of farandole\.adapters\.Callback"):
        prepare(strategy, [given])


def test_a_phase_that_does_not_exist_is_refused(strategy: Strategy) -> None:
    class Wrong(Callback):
        watches = frozenset({"foward"})

    with pytest.raises(OptionError, match=r"Wrong watches 'foward', .* Did you mean 'forward'"):
        prepare(strategy, [Wrong()])


def test_a_callback_that_watches_nothing_is_called_without_a_clock(
    strategy: Strategy, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = prepare(strategy, [Callback()])
    (batch,) = training.batches(DATA, 20)
    monkeypatch.setattr(time, "perf_counter", lambda: pytest.fail("the clock was read"))
    training.step(batch)
