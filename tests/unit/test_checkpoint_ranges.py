"""Any ranges on any number of workers load as the same tensors on any other; and checkpoints without a training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_training import adamw, data_folder, failure, net, prepare, snapshot, step_lr, train

from farandole.adapters import CheckpointError, Progress, Strategy
from farandole.adapters.checkpoint.folder import commit
from farandole.adapters.checkpoint.manifest import Manifest, new_data
from farandole.adapters.checkpoint.ranges import split_evenly
from farandole.adapters.checkpoint.storage import Storage
from farandole.adapters.torch.checkpoint import CheckpointReader, write_checkpoint
from farandole.adapters.torch.checkpoint import writer as writer_module
from farandole.adapters.torch.checkpoint.reader import Target
from farandole.adapters.torch.checkpoint.writer import PartWriter, TensorSlice

pytestmark = pytest.mark.usefixtures("one_thread")
PROPERTY = settings(deadline=None, database=None, max_examples=60)
PATH = "memory://ranges"
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8, torch.complex64]


@PROPERTY
@given(
    tensors=st.lists(st.tuples(st.integers(0, 40), st.sampled_from([1, 2, 4, 8])), max_size=8),
    world_size=st.integers(1, 6),
    first=st.integers(0, 8),
)
def test_a_line_is_cut_into_even_parts(tensors: list[tuple[int, int]], world_size: int, first: int) -> None:
    whole = sum(numel * itemsize for numel, itemsize in tensors[:first])
    total = sum(numel * itemsize for numel, itemsize in tensors)
    cuts = split_evenly(tensors, world_size, whole)
    held = [0] * world_size
    for (numel, itemsize), ends in zip(tensors, cuts, strict=True):
        assert ends[0] == 0 and ends[-1] == numel and ends == sorted(ends) and len(ends) == world_size + 1
        for rank in range(world_size):
            held[rank] += (ends[rank + 1] - ends[rank]) * itemsize
    assert sum(held) == total
    assert all(part <= total / world_size + 8 for part in held[1:])
    assert held[0] <= max(whole, total / world_size + 8)
    assert all(ends[1] == ends[-1] for ends in cuts[:first])


def manifest(world_size: int) -> Manifest:
    return Manifest(
        framework="torch",
        strategy="local",
        world_size=world_size,
        saved_at="",
        progress=Progress(),
        extras={},
        optimizer="SGD",
        scheduler="none",
        aliases={},
        data=new_data(),
        files={},
        tensors={},
    )


def draw_ends(data: st.DataObject, numel: int, workers: int) -> list[int]:
    return [0, *sorted(data.draw(st.integers(0, numel)) for _ in range(workers - 1)), numel]


def draw_tensors(data: st.DataObject) -> dict[str, torch.Tensor]:
    shapes = st.lists(st.integers(0, 5), max_size=3).map(tuple)
    tensors = {}
    for number, shape in enumerate(data.draw(st.lists(shapes, min_size=1, max_size=4))):
        dtype = data.draw(st.sampled_from(DTYPES))
        tensors[f"model/{number}/x"] = torch.randint(0, 100, shape).to(dtype)
    return tensors


@PROPERTY
@given(data=st.data(), file_bytes=st.sampled_from([1, 16, 100, 1 << 20]))
def test_any_ranges_saved_give_any_ranges_loaded(data: st.DataObject, file_bytes: int) -> None:
    tensors = draw_tensors(data)
    savers, loaders = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    storage, described = Storage(PATH), manifest(savers)
    ends = {name: draw_ends(data, tensor.numel(), savers) for name, tensor in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer_module, "_FILE_BYTES", file_bytes)
        for rank in range(savers):
            writer = PartWriter(storage, described.data, rank, savers)
            flat = {name: (tensor.reshape(-1), ends[name][rank : rank + 2]) for name, tensor in tensors.items()}
            writer.write(
                TensorSlice(name, tuple(tensors[name].shape), start, values[start:end])
                for name, (values, (start, end)) in flat.items()
            )
            writer.finish()
    commit(storage, described)

    reader = CheckpointReader(PATH)
    for share in range(loaders):
        reader.verify(share, loaders)
    for name, tensor in tensors.items():
        whole = reader.read(name)
        assert whole.dtype == tensor.dtype and torch.equal(whole, tensor)
        parts = []
        own = draw_ends(data, tensor.numel(), loaders)
        for start, end in itertools.pairwise(own):
            parts.append(torch.zeros(end - start, dtype=tensor.dtype))
            reader.read_into([Target(name, start, parts[-1])])
        assert torch.equal(torch.cat(parts).view(tensor.shape), tensor)
    storage.remove_folder(described.data)


@pytest.mark.parametrize(
    ("ranges", "said"),
    [
        ([(0, 4), (4, 9)], "the ranges of 'w' do not make up its 10 elements, from 9 on"),
        ([(0, 4), (5, 10)], "from 4 on"),
        ([(0, 6), (4, 10)], "from 6 on"),
        ([(0, 10), (0, 10)], "from 10 on"),
    ],
)
def test_workers_that_leave_gaps_or_overlap_are_not_committed(ranges: list[tuple[int, int]], said: str) -> None:
    storage, described = Storage("memory://gaps"), manifest(2)
    for rank, (start, end) in enumerate(ranges):
        writer = PartWriter(storage, described.data, rank, 2)
        writer.write([TensorSlice("w", (2, 5), start, torch.arange(start, end))])
        writer.finish()
    with pytest.raises(CheckpointError, match=said):
        commit(storage, described)
    assert "manifest.json" not in storage.sizes()


def test_workers_that_differ_about_a_tensor_are_not_committed() -> None:
    storage, described = Storage("memory://differ"), manifest(2)
    for rank, dtype in enumerate((torch.float32, torch.float64)):
        writer = PartWriter(storage, described.data, rank, 2)
        writer.write([TensorSlice("w", (2,), rank, torch.ones(1, dtype=dtype))])
        writer.finish()
    with pytest.raises(CheckpointError, match="workers differ about 'w'"):
        commit(storage, described)


def test_a_tool_reads_a_checkpoint_and_writes_it_again(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy, net(), scheduler=step_lr)
    _, progress = train(training, steps=3)
    training.save(tmp_path / "first", progress, {"best": 1})

    reader = CheckpointReader(tmp_path / "first")
    reader.verify()
    weights = dict(training.weights())
    assert {name.removeprefix("model/") for name in reader.tensors if name.startswith("model/")} == weights.keys()
    assert all(torch.equal(reader.read(f"model/{name}"), weight) for name, weight in weights.items())
    momentum = training.optimizer.state[training.model[0].weight]["exp_avg"]
    assert torch.equal(reader.read("optimizer/0.weight/exp_avg"), momentum)
    assert reader.objects["slots"]["0.weight"] == {"step": torch.tensor(3.0)}
    (group,) = reader.objects["groups"]
    assert group["params"] == [name for name, _ in training.model.named_parameters()]
    assert reader.manifest.extras == {"best": 1}
    assert "has no tensor 'model/nothing'" in failure(lambda: reader.read("model/nothing"))

    write_checkpoint(
        tmp_path / "second",
        ((name, reader.read(name)) for name in reader.tensors),
        reader.objects,
        progress=reader.manifest.progress,
        extras=reader.manifest.extras,
        strategy="a tool",
        optimizer=reader.manifest.optimizer,
        scheduler=reader.manifest.scheduler,
    )
    resumed = prepare(strategy, net(1), scheduler=step_lr)
    assert resumed.load(tmp_path / "second") == progress
    assert snapshot(resumed) == snapshot(training)
    assert train(resumed, progress) == train(training, progress)


def test_a_tool_that_fails_leaves_what_was_there(strategy: Strategy, tmp_path: Path) -> None:
    prepare(strategy, net()).save(tmp_path, Progress(0, 3))
    before = {file.name for file in data_folder(tmp_path).iterdir()}

    def tensors() -> Any:
        yield "model/w", torch.ones(2)
        raise OSError("unreadable")

    with pytest.raises(OSError, match="unreadable"):
        write_checkpoint(tmp_path, tensors(), {}, progress=Progress(), strategy="a tool", optimizer="SGD")
    assert "could not be loaded" in failure(
        lambda: write_checkpoint(tmp_path, [], {"x": tmp_path}, progress=Progress(), strategy="x", optimizer="x")
    )
    assert {file.name for file in data_folder(tmp_path).iterdir()} == before
    assert len(list(tmp_path.iterdir())) == 2
    assert prepare(strategy, net(), adamw).load(tmp_path) == Progress(0, 3)
