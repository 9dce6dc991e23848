"""Properties of how a DataLoader's samples are split, for any numbers; no worker is started."""

from __future__ import annotations

import copy
import pickle
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch.utils.data import ConcatDataset, DataLoader, Dataset, DistributedSampler, Subset, TensorDataset

from farandole.adapters import DataError, OptionError, Worker
from farandole.adapters.torch.engines.local import LocalStrategy
from farandole.plugins.lightning.data import ShareLoader, rebuild, sampler_of
from farandole.plugins.lightning.draws import SeededIndices, draws_nothing
from farandole.plugins.lightning.plans import Plan, Share, plan_of
from farandole.plugins.lightning.unshared import WatchedLoader

NUMBERS = {
    "length": some.integers(1, 60),
    "batch_size": some.integers(1, 7),
    "workers": some.integers(1, 5),
    "shuffle": some.booleans(),
}


@dataclass
class Position:
    """The counter of a training loop."""

    batches: int = 0

    def move(self, batches: int) -> None:
        self.batches = batches


class Reader:
    """One worker that reads its shares of an epoch, as a training loop does."""

    def __init__(self, length: int, batch_size: int, worker: Worker, shuffle: bool, **options: Any) -> None:
        data = options.pop("data", TensorDataset(torch.arange(length)))
        loader: Any = DataLoader(data, batch_size, shuffle=shuffle, **options)
        plan = plan_of(loader, worker, seed=3, broadcast=lambda value: value, training=True)
        assert plan is not None
        self.sampler = sampler_of(loader, plan, worker, seed=3)
        self.position = Position()
        self.shares: list[Share] = []
        rebuilt = rebuild(loader, self.sampler, predicting=False)
        self.loader: Any = ShareLoader(loader, rebuilt, self.sampler, self.note, self.position)

    def note(self, loader: ShareLoader, share: Share | None) -> None:
        if share is not None:
            self.shares.append(share)

    def read(self, epoch: int, batches: int | None = None) -> list[list[int]]:
        """Return the samples that count in the next batches, or in all that are left."""
        self.sampler.set_epoch(epoch)
        found = []
        for (indices,) in self.loader if batches is None or batches > self.position.batches else ():
            found.append(indices[: self.shares[-1].weight].tolist())
            self.position.batches += 1
            if self.position.batches == batches:
                break
        return found


def readers(length: int, batch_size: int, workers: int, shuffle: bool, **options: Any) -> list[Reader]:
    return [Reader(length, batch_size, Worker(rank, workers), shuffle, **options) for rank in range(workers)]


@given(**NUMBERS)
@settings(deadline=None)
def test_each_sample_comes_once(length: int, batch_size: int, workers: int, shuffle: bool) -> None:
    team = readers(length, batch_size, workers, shuffle)
    read = [reader.read(epoch=1) for reader in team]
    assert sorted(index for own in read for batch in own for index in batch) == list(range(length))
    # The same number of batches on all workers, or some would wait for ever; split from those of one process.
    assert {len(own) for own in read} == {len(team[0].loader)}
    one = Reader(length, batch_size * workers, Worker(), shuffle).read(epoch=1)
    assert [[index for batch in together for index in batch] for together in zip(*read, strict=True)] == one
    for step, together in enumerate(zip(*(reader.shares for reader in team), strict=True)):
        assert sum(share.weight for share in together) == len(one[step]) == together[0].total


@given(**NUMBERS)
@settings(deadline=None)
def test_drop_last_drops_what_one_process_would(length: int, batch_size: int, workers: int, shuffle: bool) -> None:
    team = readers(length, batch_size, workers, shuffle, drop_last=True)
    read = [reader.read(epoch=0) for reader in team]
    assert all(len(batch) == batch_size for own in read for batch in own)
    assert {len(own) for own in read} == {length // (batch_size * workers)}


@given(
    **NUMBERS,
    others=some.integers(1, 5),
    other_size=some.integers(1, 7),
    read=some.integers(0, 8),
    more=some.booleans(),
)
@settings(deadline=None)
def test_a_resumed_epoch_has_each_sample_once(
    length: int,
    batch_size: int,
    workers: int,
    shuffle: bool,
    others: int,
    other_size: int,
    read: int,
    more: bool,
) -> None:
    """With another number of workers, another batch size, and a second interruption."""
    before = readers(length, batch_size, workers, shuffle)
    found = [index for reader in before for batch in reader.read(2, read) for index in batch]
    state = before[0].loader.state_dict()
    after = readers(length, other_size, others, shuffle)
    for reader in after:
        reader.loader.load_state_dict(state)
    if more and state["samples"] < length:
        stop = after[0].position.batches + 1
        found += [index for reader in after for batch in reader.read(2, stop) for index in batch]
        state = after[0].loader.state_dict()
        after = before = readers(length, batch_size, workers, shuffle)
        for reader in after:
            reader.loader.load_state_dict(state)
    if state["samples"] < length:
        rest = [reader.read(2) for reader in after]
        found += [index for own in rest for batch in own for index in batch]
        assert all(reader.position.batches == len(reader.loader) for reader in after)
    assert sorted(found) == list(range(length))


@given(**{name: NUMBERS[name] for name in ("length", "batch_size", "workers")})
@settings(deadline=None)
def test_nobody_is_without_held_out_samples_where_it_can_be(length: int, batch_size: int, workers: int) -> None:
    plan = evaluation_plan(length, batch_size, workers)
    batches = list(plan.batches(0, 0))
    assert [int(index) for parts in batches for part in parts for index in part] == list(range(length))
    assert len(batches) == len(plan)
    assert all(len(part) <= batch_size for parts in batches for part in parts)
    empty = sum(len(part) == 0 for parts in batches for part in parts)
    assert empty == plan.placeholders()
    assert empty == 0 or batch_size == 1 or length < workers


def evaluation_plan(length: int, batch_size: int, workers: int) -> Plan:
    loader = DataLoader(TensorDataset(torch.arange(length)), batch_size)
    plan = plan_of(loader, Worker(0, workers), 0, lambda value: value, training=False)
    assert plan is not None
    return plan


def test_samplers_that_share_by_themselves_are_left_alone() -> None:
    data = TensorDataset(torch.arange(10))
    own = DataLoader(data, 2, sampler=DistributedSampler(data, num_replicas=2, rank=0))
    assert plan_of(own, Worker(0, 2), 0, lambda value: value, training=True) is None


def test_a_batch_sampler_keeps_its_batches() -> None:
    batches = [[0, 1, 2], [3], [4, 5], [6, 7], [8, 9]]

    class Given(torch.utils.data.Sampler[Any]):
        def __iter__(self) -> Any:
            return iter(batches)

        def __len__(self) -> int:
            return len(batches)

    loader: Any = DataLoader(TensorDataset(torch.arange(10)), batch_sampler=Given())
    plan = plan_of(loader, Worker(0, 2), 0, lambda value: value, training=True)
    assert plan is not None
    found = [[list(part) for part in parts] for parts in plan.batches(0, 0)]
    assert found == [[[0, 1, 2], [3]], [[4, 5], [6, 7]], [[8, 9], []]]


def test_batches_that_come_in_another_order_are_refused() -> None:
    loader: Any = DataLoader(TensorDataset(torch.arange(10)), 2, num_workers=1, in_order=False)
    with pytest.raises(OptionError, match="leave in_order out"):
        plan_of(loader, Worker(0, 2), 0, lambda value: value, training=True)
    alone: Any = DataLoader(TensorDataset(torch.arange(10)), 2, in_order=False)  # without processes there is one order
    assert plan_of(alone, Worker(0, 2), 0, lambda value: value, training=True) is not None


def test_a_sampler_without_batches_is_shared_out() -> None:
    loader: Any = DataLoader(TensorDataset(torch.arange(5)), batch_size=None)
    worker = Worker(1, 2)
    plan = plan_of(loader, worker, 0, lambda value: value, training=True)
    assert plan is not None
    sampler = sampler_of(loader, plan, worker, seed=0)
    shares: list[Share | None] = []
    rebuilt = ShareLoader(loader, rebuild(loader, sampler, False), sampler, lambda _, share: shares.append(share))
    assert [int(batch[0]) for batch in rebuilt] == [1, 3, 4]  # the last is a placeholder for an empty share
    assert [None if share is None else share.weight for share in shares] == [1, 1, 0, None]


def test_other_data_is_refused_in_the_middle_of_an_epoch() -> None:
    reader = Reader(20, 4, Worker(), False)
    reader.read(0, 2)
    state = reader.loader.state_dict()
    with pytest.raises(DataError, match="20 samples, and the training data has 24 now"):
        Reader(24, 4, Worker(), False).loader.load_state_dict(state)


def test_a_loader_is_that_of_its_user_to_whoever_asks() -> None:
    class Mine(DataLoader[Any]):
        pass

    given = Mine(TensorDataset(torch.arange(6)), 2)
    plan = plan_of(given, Worker(0, 2), 0, lambda value: value, training=True)
    assert plan is not None
    sampler = sampler_of(given, plan, Worker(0, 2), seed=0)
    loader: Any = ShareLoader(given, rebuild(given, sampler, False), sampler, lambda loader, share: None)
    watched = WatchedLoader(given, LocalStrategy(), False, False, iter)
    list(loader)
    for each in (loader, watched):
        assert isinstance(each, Mine) and isinstance(each, DataLoader)
        for copied in (copy.deepcopy(each), copy.copy(each)):
            assert type(copied) is Mine
            assert [len(batch) for (batch,) in copied] == [2, 2, 2], "all of it: a copy is in no job"


class Augmented(Dataset[Any]):
    """Draws from all streams."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[int, float]:
        return index, random.random() + float(np.random.random()) + float(torch.rand(()))


class Together(Augmented):
    """Loads a batch at once, as datasets of Hugging Face do: what it looks up is not what it draws."""

    def __getitems__(self, indices: list[int]) -> list[tuple[int, float]]:
        keys = list(indices)
        return [self[key] for key in keys]


WAYS = {
    "dataset": (Augmented(), 6),
    "subset": (Subset(Augmented(), range(12)), 6),
    "subset of a subset": (Subset(Subset(Augmented(), range(12)), range(12)), 6),
    "batches at once": (Together(), 6),
    "no batches": (Augmented(), None),
}


@pytest.mark.parametrize(("data", "size"), WAYS.values(), ids=WAYS)
def test_what_is_drawn_for_a_sample_is_the_same_everywhere(data: Any, size: Any) -> None:
    """On any number of workers, in a process that loads, and in an epoch that is resumed; it differs by epoch."""

    def draws(epoch: int, *readers: Reader) -> dict[int, float]:
        for reader in readers:
            reader.sampler.set_epoch(epoch)
        batches = [batch for reader in readers for batch in reader.loader]
        pairs = batches if size is None else [pair for batch in batches for pair in zip(*batch, strict=True)]
        return {int(index): float(drawn) for index, drawn in pairs}

    states = []
    for each in (TensorDataset(torch.arange(12), torch.arange(12)), data):
        torch.manual_seed(0)
        expected = draws(1, Reader(12, size, Worker(), True, data=each))
        states.append(torch.get_rng_state())
    assert torch.equal(*states), "the model draws from it"
    assert len(set(expected.values())) == 12
    torch.manual_seed(1)
    assert draws(1, *readers(12, size and 3, 2, True, data=data)) == expected
    resumed = Reader(12, size, Worker(), True, data=data)
    resumed.loader.load_state_dict({"epoch": 1, "samples": 6, "length": 12})
    rest = draws(1, resumed)
    assert len(rest) == 6 and rest.items() <= expected.items()
    assert draws(2, resumed).items().isdisjoint(expected.items())


def test_what_seeds_samples_reaches_loader_processes() -> None:
    sent: Any = Reader(12, 6, Worker(), True, data=Augmented())
    dataset, indices = pickle.loads(pickle.dumps((sent.loader._loader.dataset, SeededIndices((5, 2), 3, 1))))
    assert dataset.__getitems__(indices) == sent.loader._loader.dataset.__getitems__(SeededIndices((5, 2), 3, 1))
    dataset.scale = 2
    assert dataset.scale == 2 and isinstance(sent.loader.dataset, Augmented) and len(dataset) == 12


def test_a_dataset_that_collates_by_itself_loads_whole_batches() -> None:
    class Columns(Dataset[Any]):
        def __len__(self) -> int:
            return 12

        def __getitems__(self, indices: list[int]) -> Any:
            return torch.tensor(indices), torch.rand(len(indices))

    first, again = (list(Reader(12, 6, Worker(), True, data=Columns(), collate_fn=tuple).loader) for _ in range(2))
    assert [len(indices) for indices, _ in first] == [6, 6]
    assert all(map(torch.equal, sum(first, ()), sum(again, ())))


def test_what_is_known_to_draw_nothing_is_not_seeded() -> None:
    plain = TensorDataset(torch.arange(12))
    for data in (plain, Subset(plain, range(6)), ConcatDataset([plain, Subset(Subset(plain, range(6)), range(3))])):
        assert draws_nothing(data)
    for data in (Augmented(), Subset(Augmented(), range(6)), ConcatDataset([plain, Augmented()])):
        assert not draws_nothing(data)


def test_the_order_is_documented() -> None:
    reader = Reader(11, 11, Worker(), True)
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([3, 4])))
    assert reader.read(4) == [stream.permutation(11).tolist()]
