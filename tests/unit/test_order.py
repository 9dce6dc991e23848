"""The order of samples: the same at every world size, each sample once, and resumable anywhere."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farandole.adapters import DataError, OptionError, Progress, Worker
from farandole.adapters.order import GlobalOrder, MicroBatch, check_batch_size

PROPERTY = settings(deadline=None, database=None, max_examples=150)


def published(length: int, seed: int, epoch: int) -> list[int]:
    """The permutation as `order` documents it, for other programs."""
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, epoch])))
    return [int(index) for index in stream.permutation(length)]


class Job(NamedTuple):
    """One way to run a training: everything the order may depend on, and what it may not."""

    length: int
    global_batch_size: int
    seed: int
    accumulate: int
    world_size: int
    epochs: int
    shuffle: bool

    @property
    def order(self) -> GlobalOrder:
        return GlobalOrder(self.length, self.global_batch_size, self.seed, self.shuffle)

    def step(self, epoch: int, step: int) -> list[tuple[MicroBatch, ...]]:
        """The micro-batches of one step, by worker."""
        workers = [Worker(rank, self.world_size) for rank in range(self.world_size)]
        return [self.order.micro_batches(epoch, step, worker, self.accumulate) for worker in workers]

    def expected(self, epoch: int, step: int) -> list[int]:
        """The samples of one step, by the published definition."""
        order = published(self.length, self.seed, epoch) if self.shuffle else list(range(self.length))
        return order[step * self.global_batch_size : (step + 1) * self.global_batch_size]


@st.composite
def jobs(draw: st.DrawFn, **fixed: Any) -> Job:
    values: dict[str, Any] = {
        "length": draw(st.integers(1, 120)),
        "global_batch_size": draw(st.integers(1, 40)),
        "seed": draw(st.integers(0, 2**63 - 1)),
        "accumulate": draw(st.integers(1, 5)),
        "world_size": draw(st.integers(1, 6)),
        "epochs": draw(st.integers(1, 3)),
        "shuffle": draw(st.booleans()),
    }
    return Job(**(values | fixed))


@PROPERTY
@given(jobs())
def test_each_sample_of_an_epoch_comes_exactly_once(job: Job) -> None:
    positions = list(job.order.positions(Progress(), job.epochs))
    for epoch in range(job.epochs):
        seen = Counter(
            index
            for at, step in positions
            if at == epoch
            for worker in job.step(epoch, step)
            for part in worker
            if part.weight
            for index in part.indices
        )
        assert seen == Counter(range(job.length))


@PROPERTY
@given(jobs())
def test_a_step_is_the_same_run_of_the_published_order_on_any_number_of_workers(job: Job) -> None:
    for epoch, step in job.order.positions(Progress(), job.epochs):
        shared = [index for worker in job.step(epoch, step) for part in worker if part.weight for index in part.indices]
        assert shared == job.expected(epoch, step)
        assert [int(index) for index in job.order.global_batch(epoch, step)] == shared


@PROPERTY
@given(jobs())
def test_weights_are_numbers_of_samples_and_sum_to_the_global_batch(job: Job) -> None:
    for epoch, step in job.order.positions(Progress(), job.epochs):
        parts = [part for worker in job.step(epoch, step) for part in worker]
        assert sum(part.weight for part in parts) == job.order.size(step) == len(job.expected(epoch, step))
        assert all(part.weight == len(part.indices) for part in parts if part.weight)


@PROPERTY
@given(jobs())
def test_all_workers_have_as_many_micro_batches_of_nearly_equal_size(job: Job) -> None:
    for epoch, step in job.order.positions(Progress(), job.epochs):
        workers = job.step(epoch, step)
        assert [len(worker) for worker in workers] == [job.accumulate] * job.world_size
        shares = [sum(part.weight for part in worker) for worker in workers]
        assert max(shares) - min(shares) <= 1
        for worker in workers:
            weights = [part.weight for part in worker]
            assert max(weights) - min(weights) <= 1


@PROPERTY
@given(jobs())
def test_an_empty_share_is_stood_in_for_by_one_sample_of_the_step_twice_with_weight_0(job: Job) -> None:
    for epoch, step in job.order.positions(Progress(), 1):
        for worker in job.step(epoch, step):
            for part in worker:
                if part.weight == 0:
                    assert len(part.indices) == 2
                    assert part.indices[0] == part.indices[1]
                    assert part.indices[0] in job.expected(epoch, step)


def test_shares_are_empty_where_there_are_more_of_them_than_samples() -> None:
    job = Job(length=5, global_batch_size=4, seed=0, accumulate=2, world_size=3, epochs=1, shuffle=False)
    assert job.step(0, 0) == [
        (MicroBatch((0,), 1), MicroBatch((1,), 1)),
        (MicroBatch((2,), 1), MicroBatch((0, 0), 0)),
        (MicroBatch((3,), 1), MicroBatch((0, 0), 0)),
    ]
    assert [[part.weight for part in worker] for worker in job.step(0, 1)] == [[1, 0], [0, 0], [0, 0]]


@PROPERTY
@given(jobs(), st.data())
def test_a_run_resumed_at_any_step_goes_on_exactly(job: Job, data: st.DataObject) -> None:
    order = job.order
    whole = list(order.positions(Progress(), job.epochs))
    done = data.draw(st.integers(0, len(whole)), label="steps done")
    start = order.after(*whole[done - 1]) if done else Progress()
    assert list(order.positions(start, job.epochs)) == whole[done:]
    # Another number of workers, a fresh order object: what is still to come is the same.
    resumed = job._replace(world_size=data.draw(st.integers(1, 6)), accumulate=data.draw(st.integers(1, 5)))
    for epoch, step in whole[done : done + 3]:
        taken = [i for worker in resumed.step(epoch, step) for part in worker if part.weight for i in part.indices]
        assert taken == job.expected(epoch, step)


@PROPERTY
@given(jobs())
def test_progress_counts_steps_and_ends_an_epoch_at_the_next(job: Job) -> None:
    steps = job.order.steps_per_epoch
    assert (steps - 1) * job.global_batch_size < job.length <= steps * job.global_batch_size
    assert job.order.after(3, steps - 1) == Progress(4, 0)
    assert all(job.order.after(3, step) == Progress(3, step + 1) for step in range(steps - 1))
    # The end of an epoch, as another program may write it, is the start of the next.
    end, start = Progress(0, steps), Progress(1, 0)
    assert list(job.order.positions(end, 2)) == list(job.order.positions(start, 2))


@pytest.mark.parametrize(
    ("seed", "epoch", "permutation"),
    [
        (0, 0, [7, 1, 0, 6, 3, 5, 10, 8, 11, 2, 9, 4]),
        (0, 1, [9, 3, 6, 5, 7, 0, 8, 4, 1, 11, 10, 2]),
        (1, 0, [8, 1, 10, 11, 0, 7, 6, 9, 3, 4, 2, 5]),
        (2**40, 7, [2, 3, 0, 7, 8, 9, 10, 4, 5, 11, 1, 6]),
    ],
)
def test_the_order_never_changes_between_releases(seed: int, epoch: int, permutation: list[int]) -> None:
    order = GlobalOrder(length=12, global_batch_size=12, seed=seed)
    assert [int(index) for index in order.global_batch(epoch, 0)] == permutation


def test_every_epoch_of_every_seed_has_an_order_of_its_own() -> None:
    first = [tuple(GlobalOrder(50, 50, seed).global_batch(epoch, 0)) for seed in range(3) for epoch in range(3)]
    assert len(set(first)) == 9


def test_the_order_cannot_be_spoilt_by_who_reads_it() -> None:
    batch = GlobalOrder(10, 4).global_batch(0, 0)
    with pytest.raises(ValueError, match="read-only"):
        batch[0] = 99


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"length": 0, "global_batch_size": 1}, DataError, "the dataset has length 0"),
        ({"length": 1, "global_batch_size": 0}, OptionError, "global_batch_size=0 must be at least 1"),
        ({"length": 1, "global_batch_size": -4}, OptionError, "global_batch_size=-4"),
        ({"length": 1, "global_batch_size": 1, "seed": -1}, OptionError, "seed=-1"),
        ({"length": 1, "global_batch_size": 1, "seed": 2**63}, OptionError, f"seed={2**63}"),
    ],
)
def test_what_has_no_order_is_refused(arguments: dict[str, int], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        GlobalOrder(**arguments)


def test_a_global_batch_smaller_than_the_workers_is_refused() -> None:
    check_batch_size("batch_size", 4, 4)
    with pytest.raises(OptionError, match=r"^batch_size=3 is smaller than the 4 workers.* Raise it, or start fewer"):
        check_batch_size("batch_size", 3, 4)


def test_a_start_beyond_the_epoch_names_what_it_may_come_from() -> None:
    order = GlobalOrder(length=10, global_batch_size=4)
    with pytest.raises(DataError) as caught:
        next(order.positions(Progress(0, 4), 2))
    assert "cannot start at step 4: an epoch has 3 steps (10 samples in global batches of 4)" in str(caught.value)
    assert "Resume with the dataset and global_batch_size" in str(caught.value)


def test_a_start_after_the_last_epoch_leaves_nothing_to_do() -> None:
    assert list(GlobalOrder(10, 4).positions(Progress(2, 0), 2)) == []


@pytest.mark.parametrize("place", [(-1, 0), (0, -1)])
def test_progress_counts_from_0(place: tuple[int, int]) -> None:
    with pytest.raises(OptionError, match="progress counts from 0"):
        Progress(*place)


def test_progress_is_ordered_as_time_is() -> None:
    assert sorted([Progress(1, 0), Progress(0, 9), Progress(0, 2)]) == [Progress(0, 2), Progress(0, 9), Progress(1, 0)]
