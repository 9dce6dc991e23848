"""Windows of one worker, and stragglers among recorded windows of several."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from farandole.adapters import Phase, Progress, StepRecord
from farandole.plugins.metrics.compared import Compared, flat, parted
from farandole.plugins.metrics.records import Spread, Straggler
from farandole.plugins.metrics.stragglers import StragglerWatch, suspect_of
from farandole.plugins.metrics.window import NAN, Steps, Summary, spread_of

# A step of the large model on two workers, in seconds.
USUAL = Summary(
    step=0.200,
    data=0.002,
    forward=0.060,
    backward=0.110,
    update=0.010,
    wait=0.016,
    save=NAN,
    other=0.002,
    gc=0.0,
    low=0.181,
    high=0.187,
    faults=0.0,
)


def slowed(by: float, **phases: float) -> list[Summary]:
    """Return three workers, of which worker 1 loses `by` seconds a step in these phases; the others wait for it."""
    whole = USUAL.step + by
    own = {name: getattr(USUAL, name) + value for name, value in phases.items()}
    slow = replace(USUAL, step=whole, low=USUAL.low + by, high=USUAL.high + by, **own)
    waits = replace(USUAL, step=whole, wait=USUAL.wait + by)
    return [waits, slow, waits]


def test_a_window_adds_up() -> None:
    steps = Steps()
    for number in range(20):
        start = 10.0 * number
        phases = (
            Phase("save", None, start - 2, start - 1),  # before the epoch's first step
            Phase("data", None, start - 9, start - 5),  # in vain, at the end of the last epoch
            Phase("data", None, start, start + 1),
            Phase("forward", 0, start + 1, start + 3),
            Phase("forward", 1, start + 4, start + 5),
            Phase("wait", None, start + 5, start + 7 + (number == 3)),
        )
        steps.add(StepRecord(Progress(0, number + 1), 0.5, phases, samples=4), start, start + 9, gc=0.25)
    assert (len(steps), steps.samples, steps.tokens, steps.seconds) == (20, 80, None, 200.0)
    found = steps.spreads()
    assert found.keys() == {f"{name}_ms" for name in ("step", "save", "data", "forward", "wait", "other", "gc")}
    assert found["step_ms"] == Spread(10_000, 10_000, 10_000) and found["save_ms"].mean == 1000
    assert found["data_ms"].mean == 1000 and found["forward_ms"].mean == 3000 and found["gc_ms"].p95 == 250
    assert found["wait_ms"] == Spread(2050, 3000, 2000) and found["other_ms"].mean == 2950
    summary = steps.summary(faults=40)
    assert (summary.wait, summary.busy, summary.faults) == (2, 8, 2) and math.isnan(summary.backward)
    assert sum(found[f"{name}_ms"].mean for name in ("save", "data", "forward", "wait", "other")) == 10_000


def test_the_95th_percentile_is_the_nearest_rank() -> None:
    assert spread_of(range(1, 101)) == Spread(50.5, 100, 95)
    assert spread_of([3.0]) == Spread(3, 3, 3)


def test_the_collectives_own_time_is_not_waiting() -> None:
    values = [
        {"wait_ms": Spread(5.0, 9.0, 8.0), "step_ms": Spread.of(20.0)},
        {"wait_ms": Spread(2.0, 2.0, 2.0), "step_ms": Spread.of(22.0)},
    ]
    compared = Compared([flat(USUAL, own) for own in values])
    assert compared.communication == 2 and compared.step == USUAL.step
    across = compared.across()
    assert across.keys() == {"wait_ms", "communication_ms", "step_ms"}
    assert (across["wait_ms"].min, across["wait_ms"].max, across["communication_ms"].mean) == (0, 3, 2)
    assert (across["step_ms"].mean, across["step_ms"].imbalance) == (21, pytest.approx(1 / 21))
    own = parted(values[0], compared.communication)
    assert own["wait_ms"] == Spread(3, 7, 6) and own["communication_ms"].mean == 2
    assert parted({"step_ms": Spread.of(1.0)}, 2.0) == {"step_ms": Spread.of(1.0)}
    unknown = Compared([flat(USUAL, values[0]), flat(USUAL, {})])
    assert unknown.communication == 0, "one worker does not measure it"


@pytest.mark.parametrize("cause", ["data", "forward", "backward", "update"])
def test_a_straggler_is_named_with_its_phase(cause: str) -> None:
    assert StragglerWatch().next(slowed(0.040, **{cause: 0.040}), 10) == Straggler(
        rank=1, cause=cause, impact=pytest.approx(1 / 6), level="warning", seconds_an_hour=pytest.approx(600)
    )


def test_a_costly_one_is_critical() -> None:
    found = StragglerWatch().next(slowed(0.060, backward=0.060), 10)
    assert found is not None and found.level == "critical"
    assert found.seconds_an_hour == pytest.approx(3600 * 0.06 / 0.26)


@pytest.mark.parametrize(
    ("phases", "cause"),
    [
        ({"forward": 0.030, "backward": 0.030}, "unexplained"),
        ({"other": 0.060}, "unexplained"),
        ({"forward": 0.050, "other": 0.010}, "forward"),
        ({"forward": 0.030, "backward": 0.030, "gc": 0.055}, "gc"),
        ({"backward": 0.060, "faults": 50.0}, "memory"),
        ({"data": 0.060, "faults": 50.0}, "data"),
    ],
)
def test_a_cause_explains_most_of_it(phases: dict[str, float], cause: str) -> None:
    found = StragglerWatch().next(slowed(0.060, **phases), 10)
    assert found is not None and (found.rank, found.cause) == (1, cause)


def test_none_is_named_for_little_or_for_one_window() -> None:
    assert StragglerWatch().next(slowed(0.015, data=0.015), 10) is None
    watch = StragglerWatch()
    some = slowed(0.026, data=0.026)  # 11.5 %
    assert watch.next(some, 10) is None
    assert watch.next([USUAL] * 3, 10) is None and watch.next(some, 10) is None
    found = watch.next(some, 10)
    assert found is not None and found.rank == 1, "twice in a row"
    assert watch.next([some[1], some[0], some[0]], 10) is None, "another one, once"


def test_few_steps_are_not_enough_at_once() -> None:
    watch, slow = StragglerWatch(), slowed(0.060, data=0.060)
    assert watch.next(slow, 4) is None
    found = watch.next(slow, 4)
    assert found is not None and found.rank == 1


def test_a_slow_step_or_a_noisy_worker_is_not_one() -> None:
    noisy = [replace(worker, low=USUAL.low) for worker in slowed(0.040, data=0.040)]
    assert StragglerWatch().next(noisy, 10) is None
    hidden = [replace(worker, wait=USUAL.wait) for worker in slowed(0.040, data=0.040)]
    assert suspect_of(hidden) is None, "nobody waits for it"
    assert suspect_of([USUAL]) is None


def test_without_waits_only_data_tell() -> None:
    workers = [replace(worker, wait=NAN) for worker in slowed(0.060, backward=0.060)]
    assert suspect_of(workers) is None
    workers = [replace(worker, wait=NAN) for worker in slowed(0.060, data=0.060)]
    found = StragglerWatch().next(workers, 10)
    assert found is not None and (found.rank, found.cause) == (1, "data")
