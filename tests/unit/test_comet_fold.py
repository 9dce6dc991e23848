"""What of the records is sent to Comet: no step twice, no more than it takes, and the same after any interruption."""

import json
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
from comet_runs import START, logged, window, workers

from farandole.plugins.metrics import Logged, Record
from farandole.plugins.metrics.comet.client import Value
from farandole.plugins.metrics.comet.fold import A_MINUTE, MOST_NAMES, MOST_OF_A_NAME, Fold
from farandole.plugins.metrics.comet.names import MODES, parts
from farandole.plugins.metrics.comet.run import share


def feed(fold: Fold, records: Iterable[Record], each: float = A_MINUTE) -> list[Value]:
    return [value for record in records for value in fold.feed(record, "single", each)]


def test_names_say_whose_they_are() -> None:
    assert [part.name for part in parts(window(10, rank=3), "single")] == [
        "worker_3/step_time",
        "worker_3/data_time",
        "worker_3/step_time_max",
        "worker_3/step_time_p95",
    ]
    assert "workers/step_time_max" in [part.name for part in parts(workers(10), "single")]
    assert [part.name for part in parts(window(10, rank=3, loss=1.0), "per_worker")][:3] == [
        "worker/step_time",
        "worker/data_time",
        "worker/loss",
    ]


@pytest.mark.parametrize("mode", MODES)
def test_a_logged_name_keeps_clear_of_ours(mode: str) -> None:
    names = ["accuracy", "worker_3/step_time", "workers/step_time_max", "worker/loss", "[red]<b>"]
    record = logged(10, **dict.fromkeys(names, 1.0))
    assert [part.name for part in parts(record, mode)] == [  # type: ignore[arg-type]
        "accuracy",
        "logged/worker_3/step_time",
        "logged/workers/step_time_max",
        "logged/worker/loss",
        "[red]<b>",
    ]
    assert parts(logged(10, rank=2, accuracy=1.0), "single")[0].name == "worker_2/accuracy"


def test_long_names_stay_apart() -> None:
    record = logged(10, **{"x" * 200: 1.0, "x" * 199 + "y": 2.0})
    found = [part.name for part in parts(record, "single")]
    assert len(set(found)) == 2
    assert all(len(name) <= 100 for name in found)


def test_steps_that_are_done_again_are_not_sent_again() -> None:
    records = [*(window(step) for step in range(10, 80, 10)), *(window(step, attempt=1) for step in range(50, 100, 10))]
    sent = [value.step for value in feed(Fold(), records) if value.name == "worker_0/step_time"]
    assert sent == [10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_the_same_values_after_any_interruption() -> None:
    records = [window(step, loss=step / 7) for step in range(1, 120)]
    whole = feed(Fold(), records, each=300.0)
    fold, pieces = Fold(), []
    for record in records:
        pieces += feed(fold, [record], each=300.0)
        fold = Fold.of(json.loads(json.dumps(fold.state())))
    assert pieces == whole
    assert 0 < len(whole) < 5 * len(records) / 2  # several became one


@pytest.mark.parametrize("world_size", [1, 3, 256])
def test_all_workers_send_no_more_in_a_minute_than_comet_takes(world_size: int) -> None:
    each = share("single", world_size)
    records = [replace(window(step, loss=1.0), time=START + step / 50) for step in range(1, 6_000)]
    fold, times = Fold(), []
    for record in records:
        times += [record.time] * len(fold.feed(record, "single", each))
    most = max(sum(1 for at in times if start <= at < start + 60) for start in (START, START + 30, START + 60))
    assert most * (world_size + 1) <= A_MINUTE + 5 * (world_size + 1)
    assert fold.widened == (len(times) < 5 * len(records))
    assert len(times) > 100 / world_size


def test_no_metric_gets_more_values_than_comet_keeps() -> None:
    fold = Fold()
    count = sum(len(fold.feed(logged(60 * step, loss=1.0), "single", A_MINUTE)) for step in range(1, 40_000))
    assert 5_000 < count < MOST_OF_A_NAME
    fold.metrics["loss"].sent = MOST_OF_A_NAME
    assert feed(fold, [logged(60 * step, loss=1.0) for step in range(40_000, 40_100)]) == []
    assert fold.flush() == []


def test_means_are_of_steps() -> None:
    fold = Fold()
    for name in ("worker_0/loss", "worker_0/step_time_max"):
        assert name not in fold.metrics
    feed(fold, [window(step) for step in range(10, 1000, 10)], each=1.0)  # nothing is left of the allowance
    fold.flush()
    feed(fold, [window(1010, every=10, loss=1.0), window(1040, every=30, loss=5.0)], each=1.0)
    values = {value.name: value for value in fold.flush()}
    assert values["worker_0/loss"].value == pytest.approx(4.0)
    assert values["worker_0/loss"].step == 1040
    assert values["worker_0/step_time_max"].value == pytest.approx(61.04)


def test_numbers_that_are_not_finite_are_sent() -> None:
    record = logged(10, nan=math.nan, inf=math.inf)
    assert [math.isnan(value.value) or value.value for value in feed(Fold(), [record])] == [True, math.inf]


def test_a_clock_that_jumps_changes_no_more_than_the_pace() -> None:
    fold = Fold()
    jumps = [0.0, -86_400.0, 10.0, 86_400.0, 20.0]
    records = [replace(window(step), time=START + jump) for step, jump in zip(range(10, 60, 10), jumps, strict=True)]
    assert len({value.step for value in feed(fold, records, each=600.0)}) == 5


def test_a_hundred_thousand_names_do_not_fill_the_memory() -> None:
    record = Logged(
        attempt=0, rank=0, time=START, epoch=0, step=1, values={f"name {number}": 1.0 for number in range(100_000)}
    )
    fold = Fold()
    feed(fold, [record])
    assert len(fold.metrics) == MOST_NAMES
    assert fold.crowded
