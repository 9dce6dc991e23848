"""Datasets on torch's DataLoader, in this process; `tests/data` does the same with loader processes."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, TensorDataset

from farandole.adapters import DataError, OptionError, Progress, Worker
from farandole.adapters.order import GlobalOrder
from farandole.adapters.random_seed import mix
from farandole.adapters.torch.data import StepLoader, order_of, to_device

pytestmark = pytest.mark.usefixtures("one_thread")

PROPERTY = settings(deadline=None, database=None, max_examples=60)
START = Progress()


def loaders(
    dataset: Any,
    order: GlobalOrder,
    world: int,
    accumulate: int = 1,
    start: Progress = START,
    epochs: int = 1,
    **options: Any,
) -> list[StepLoader]:
    """What each worker of a job of `world` workers loads."""
    return [
        StepLoader(dataset, order, Worker(rank, world), accumulate, start, epochs, options) for rank in range(world)
    ]


def published(order: GlobalOrder, epoch: int, step: int) -> list[int]:
    stream = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([order.seed, epoch])))
    first = step * order.global_batch_size
    return [int(index) for index in stream.permutation(order.length)[first : first + order.global_batch_size]]


@PROPERTY
@given(st.data())
def test_workers_together_load_the_published_order_each_sample_once(data: st.DataObject) -> None:
    order = GlobalOrder(data.draw(st.integers(1, 60)), data.draw(st.integers(1, 25)), data.draw(st.integers(0, 9)))
    epochs, accumulate, world = (data.draw(st.integers(1, most)) for most in (3, 4, 4))
    whole = [(epoch, step) for epoch in range(epochs) for step in range(order.steps_per_epoch)]
    done = data.draw(st.integers(0, len(whole) - 1))
    dataset = torch.arange(order.length)
    loaded = [list(loader) for loader in loaders(dataset, order, world, accumulate, Progress(*whole[done]), epochs)]
    for number, place in enumerate(whole[done:]):
        steps = [worker[number] for worker in loaded]
        assert {(epoch, step) for epoch, step, _, _ in steps} == {place}
        parts = [part for _, _, weights, micro in steps for part in zip(weights, micro, strict=True)]
        assert len(parts) == world * accumulate
        assert [int(sample) for weight, micro in parts if weight for sample in micro] == published(order, *place)
        assert all(len(micro) == (weight or 2) for weight, micro in parts)
    assert {len(worker) for worker in loaded} == {len(whole) - done}


class Columns(NamedTuple):
    x: Any
    y: Any


class Squares(Dataset[Any]):
    """Samples (number, its square)."""

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> tuple[int, int]:
        assert type(index) is int
        return index, index**2


X, Y = torch.arange(6), torch.arange(6) ** 2
CUT = torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 4, 9])


@pytest.mark.parametrize(
    ("dataset", "micro"),
    [
        pytest.param(X, CUT[0], id="a tensor"),
        pytest.param(X.numpy(), CUT[0], id="an array"),
        pytest.param((X, Y.numpy()), CUT, id="a tuple of both"),
        pytest.param({"x": X, "y": Y.numpy()}, {"x": CUT[0], "y": CUT[1]}, id="a dict"),
        pytest.param(Columns(X, Y), Columns(*CUT), id="a named tuple"),
        pytest.param(TensorDataset(X, Y), CUT, id="a TensorDataset"),
        pytest.param(Squares(), list(CUT), id="a map-style dataset"),
        pytest.param([(i, i**2) for i in range(6)], list(CUT), id="a list of samples"),
        pytest.param(tuple((i, i**2) for i in range(6)), list(CUT), id="a tuple of samples"),
        pytest.param([{"x": i} for i in range(6)], {"x": CUT[0]}, id="a list of dicts"),
        pytest.param([torch.tensor([i, i]) for i in range(6)], CUT[0][:, None].expand(4, 2), id="a list of tensors"),
        pytest.param(range(6), CUT[0], id="a range"),
    ],
)
def test_every_kind_of_dataset_gives_the_same_samples(dataset: Any, micro: Any) -> None:
    order = order_of(dataset, 4, seed=0, shuffle=False)
    ((_, _, first, (data,)), (_, _, second, _)) = StepLoader(dataset, order, Worker(), 1, START, 1, {})
    assert (order.length, first, second) == (6, (4,), (2,))
    assert type(data) is type(micro)
    if isinstance(micro, dict):
        assert data.keys() == micro.keys()
        data, micro = list(data.values()), list(micro.values())
    if isinstance(micro, torch.Tensor):
        data, micro = [data], [micro]
    assert all(torch.equal(one, other) for one, other in zip(data, micro, strict=True))


def test_samples_are_collated_as_torch_collates_them() -> None:
    samples = [{"x": np.float32(i), "name": str(i), "pair": (i, [i])} for i in range(4)]
    ((_, _, _, (data,)),) = StepLoader(samples, GlobalOrder(4, 4, shuffle=False), Worker(), 1, START, 1, {})
    (expected,) = DataLoader(samples, batch_size=4)
    assert repr(data) == repr(expected)


def test_collate_fn_gets_the_samples_of_one_micro_batch() -> None:
    order = GlobalOrder(6, 6, shuffle=False)
    options = {"collate_fn": lambda samples: ("collated", samples)}
    ((_, _, weights, micro),) = StepLoader(Squares(), order, Worker(), 4, START, 1, options)
    assert weights == (2, 2, 1, 1)
    assert micro == (
        ("collated", [(0, 0), (1, 1)]),
        ("collated", [(2, 4), (3, 9)]),
        ("collated", [(4, 16)]),
        ("collated", [(5, 25)]),
    )


class Augmented(Dataset[Any]):
    """Samples (index, draws from the three streams), any number of draws for each sample."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> tuple[int, tuple[float, ...]]:
        for _ in range(index):
            random.random(), np.random.rand(), torch.rand(())
        return index, (random.random(), float(np.random.rand()), float(torch.rand(())))


Draws = dict[tuple[int, int], tuple[float, ...]]


def as_they_are(samples: list[Any]) -> list[Any]:
    return samples


def drawn(seed: int, world: int, accumulate: int = 1, start: Progress = START, batch: int = 4) -> Draws:
    """What each (epoch, sample) drew."""
    order = GlobalOrder(11, batch, seed)
    return {
        (epoch, index): draws
        for loader in loaders(Augmented(), order, world, accumulate, start, 3, collate_fn=as_they_are)
        for epoch, _, weights, micro in loader
        for weight, samples in zip(weights, micro, strict=True)
        for index, draws in samples
        if weight
    }


def test_augmentation_depends_on_seed_epoch_and_sample_and_nothing_else() -> None:
    alone = drawn(seed=3, world=1)
    assert alone.keys() == {(epoch, index) for epoch in range(3) for index in range(11)}
    for world, accumulate, batch in ((1, 3, 4), (2, 1, 4), (3, 2, 4), (2, 2, 7)):
        random.seed(world)
        np.random.seed(world)
        torch.manual_seed(world)
        assert drawn(3, world, accumulate, batch=batch) == alone
    resumed = drawn(seed=3, world=2, start=Progress(1, 2))
    assert resumed.keys() > {(2, index) for index in range(11)}
    assert resumed.items() <= alone.items()


def test_augmentation_differs_between_samples_epochs_and_seeds_in_each_stream() -> None:
    draws = [*drawn(seed=3, world=1).values(), *drawn(seed=4, world=1).values()]
    assert [len(set(stream)) for stream in zip(*draws, strict=True)] == [66, 66, 66]


def streams() -> tuple[Any, ...]:
    return random.getstate(), tuple(map(str, np.random.get_state())), torch.get_rng_state().tolist()


class Failing(Augmented):
    def __getitem__(self, index: int) -> Any:
        super().__getitem__(index)
        raise KeyError("the fifth element")


@pytest.mark.parametrize("dataset", [Augmented(), Failing(), torch.arange(11)], ids=["samples", "failing", "tensors"])
def test_loading_leaves_the_global_random_streams_alone(dataset: Any) -> None:
    before = streams()
    loader = StepLoader(dataset, GlobalOrder(11, 4), Worker(), 2, START, 1, {})
    if isinstance(dataset, Failing):
        with pytest.raises(KeyError, match="the fifth element"):
            list(loader)
    else:
        list(loader)
    assert streams() == before


def test_another_program_may_draw_between_two_steps() -> None:
    """A model's dropout and an augmentation use one stream, but never the same numbers."""
    order = GlobalOrder(11, 4)
    torch.manual_seed(0)
    expected = [float(torch.rand(())) for _ in range(3)]
    torch.manual_seed(0)
    assert [float(torch.rand(())) for _ in StepLoader(Augmented(), order, Worker(), 1, START, 1, {})] == expected


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(range(6))


class SizedStream(Stream):
    def __len__(self) -> int:
        return 6


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> int:
        return index


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        pytest.param(torch.zeros(0, 3), "the dataset has length 0", id="an empty tensor"),
        pytest.param((np.zeros((0, 3)), np.zeros(0)), "the dataset has length 0", id="empty arrays"),
        pytest.param([], "the dataset has length 0", id="an empty list"),
        pytest.param({}, "the dataset has length 0", id="an empty dict"),
        pytest.param(DataLoader([1, 2]), "cannot be a DataLoader: pass loader.dataset", id="a loader"),
        pytest.param(
            BatchSampler(range(4), 2, False), "cannot be a BatchSampler: pass the dataset itself", id="a sampler"
        ),
        pytest.param(Stream(), "Stream has no length, so its samples have no reproducible order: pass", id="iterable"),
        pytest.param(SizedStream(), "SizedStream has no access by index", id="a stream with a length"),
        pytest.param({1, 2}, r"set has no access by index.*list\(it\)", id="iterable with a length"),
        pytest.param(Unsized(), "Unsized has no length.*pass a dataset with __len__ and __getitem__", id="no length"),
        pytest.param(iter([1]), "has no length", id="an iterator"),
        pytest.param(None, "NoneType has no length", id="nothing"),
        pytest.param((torch.zeros(3), torch.zeros(4)), "arrays of the dataset differ in length: 3, 4", id="a tuple"),
        pytest.param({"x": np.zeros(5), "y": torch.zeros(4)}, "differ in length: 5, 4", id="a dict of two lengths"),
        pytest.param(torch.tensor(1.0), "no dimension that counts samples", id="a single number"),
        pytest.param({"x": X, "y": [0] * 6}, "a dict as dataset must hold tensors or arrays only.*list", id="a list"),
        pytest.param((X, [0] * 6), "a tuple as dataset must hold tensors or arrays only.*list", id="a list in a tuple"),
        pytest.param({"x": {"a": X}}, "a dict as dataset must hold .* only, but this one has a dict", id="nested"),
        pytest.param(np.array(["a", "b"]), "cannot become a tensor", id="an array of text"),
        pytest.param(np.arange(6)[::-1], "cannot become a tensor", id="an array that torch has no view of"),
    ],
)
def test_what_has_no_samples_in_an_order_is_refused(dataset: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        order_of(dataset, 4, seed=0, shuffle=True)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize(
    ("option", "value", "way_out"),
    [
        ("batch_size", 4, "use global_batch_size"),
        ("batch_sampler", [[0]], "use the size of a global batch"),
        ("sampler", [0], "use seed and shuffle"),
        ("drop_last", True, "a short last batch is weighted exactly"),
        ("generator", torch.Generator(), "use seed"),
        ("in_order", False, "micro-batches must come in the order"),
    ],
)
@pytest.mark.parametrize("dataset", [X, Squares()], ids=["tensors", "samples"])
def test_a_loader_option_that_the_order_decides_names_the_way_out(
    option: str, value: Any, way_out: str, dataset: Any
) -> None:
    with pytest.raises(OptionError) as caught:
        StepLoader(dataset, GlobalOrder(6, 4), Worker(), 1, START, 1, {option: value})
    assert f"{option!r} is set here, the same on all workers" in str(caught.value)
    assert way_out in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_wrokers": 1}, "'num_wrokers'"),
        ({"num_workers": -1}, "num_workers"),
        ({"prefetch_factor": 2}, "prefetch_factor.*num_workers > 0"),
        ({"persistent_workers": True}, "persistent_workers.*num_workers > 0"),
        ({"timeout": -1}, "timeout"),
        ({"multiprocessing_context": "spawn"}, "multiprocessing_context"),
    ],
)
def test_a_loader_option_that_torch_refuses_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=f"DataLoader refuses an option: .*{said}"):
        StepLoader(X, GlobalOrder(6, 4), Worker(), 1, START, 1, options)


def test_collate_fn_with_tensors_is_refused() -> None:
    with pytest.raises(OptionError, match="collate_fn needs a dataset of samples"):
        StepLoader(X, GlobalOrder(6, 4), Worker(), 1, START, 1, {"collate_fn": as_they_are})


def test_all_of_a_structure_moves_to_the_device_and_the_rest_stays() -> None:
    data = {"x": torch.zeros(2), "pair": Columns(torch.ones(1), "name"), "n": [3]}
    moved = to_device(data, torch.device("meta"))  # a device that every machine has
    assert moved["x"].device.type == moved["pair"].x.device.type == "meta"
    assert (type(moved["pair"]), moved["pair"].y, moved["n"]) == (Columns, "name", [3])
    assert to_device(data, torch.device("cpu"))["x"].device.type == "cpu"


def test_any_change_of_a_number_changes_the_seed() -> None:
    numbers = (1, 2, 3)
    seeds = {mix(*numbers), mix(0, 2, 3), mix(1, 3, 3), mix(1, 2, 4), mix(2, 1, 3), mix(1, 2), mix(2**63 - 1, 2, 3)}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert mix(*numbers) == 6520558355739401531  # a resumed run depends on it
