"""Damaged checkpoints, and those of another training, are refused by name and change nothing."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_training import (
    Make,
    adamw,
    data_folder,
    edit,
    failure,
    manifest_of,
    net,
    prepare,
    sgd,
    snapshot,
    step_lr,
    train,
    two_groups,
)
from torch import nn
from torch.optim import lr_scheduler

from farandole.adapters import Progress, Strategy
from farandole.adapters.torch.checkpoint import CheckpointReader


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "checkpoint"


@pytest.fixture
def saved(strategy: Strategy, path: Path) -> Path:
    training = prepare(strategy, net(), scheduler=step_lr)
    _, progress = train(training, steps=3)
    training.save(path, progress)
    return path


def refusal(strategy: Strategy, path: Path, *make: Any) -> str:
    """Return the message of a failed load of `path`, which must change nothing."""
    training = prepare(strategy, *make) if make else prepare(strategy, net(1), scheduler=step_lr)
    train(training, steps=1)
    training.extras = {"own": 1}
    before = snapshot(training)
    message = failure(lambda: training.load(path))
    assert f"cannot load {path} (worker 0)" in message
    assert (snapshot(training), training.extras) == (before, {"own": 1})
    return message


def test_the_checkpoint_that_these_tests_damage_can_be_loaded(strategy: Strategy, saved: Path) -> None:
    assert prepare(strategy, net(1), scheduler=step_lr).load(saved) == Progress(0, 3)


FILES = ["__0_0.distcp", "objects.pt", "part-0.json"]


def test_these_are_all_its_files(saved: Path) -> None:
    assert sorted(file.name for file in data_folder(saved).iterdir()) == FILES


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(strategy: Strategy, saved: Path, name: str, keep: float) -> None:
    file = data_folder(saved) / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * keep)])
    said = f"{file} is damaged: it has {int(len(whole) * keep)} bytes, not {len(whole)}"
    assert said in refusal(strategy, saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(strategy: Strategy, saved: Path, name: str) -> None:
    file = data_folder(saved) / name
    file.unlink()
    assert f"{file} is missing" in refusal(strategy, saved)


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, database=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_found(saved: Path, name: str, data: st.DataObject) -> None:
    file = data_folder(saved) / name
    whole = file.read_bytes()
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    file.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << bit)]) + whole[position + 1 :])
    try:
        message = failure(lambda: CheckpointReader(saved).verify())
    finally:
        file.write_bytes(whole)
    assert f"{file} is damaged: its checksum is another" in message
    CheckpointReader(saved).verify()


def test_a_load_with_a_flipped_byte_changes_nothing(strategy: Strategy, saved: Path) -> None:
    file = data_folder(saved) / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 255
    file.write_bytes(content)
    assert f"{file} is damaged: its checksum is another" in refusal(strategy, saved)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.folder),)


def vouch_for(path: Path, file: Path) -> None:
    """Store a forged file's size and checksum where they are compared, as a forger would."""
    files = manifest_of(path)["files"]
    part = data_folder(path) / "part-0.json"
    content = json.loads(part.read_text())
    info = {"bytes": file.stat().st_size, "crc32": zlib.crc32(file.read_bytes())}
    content["files"][file.name] = info
    for ranges in content["ranges"].values():
        for piece in ranges:
            if piece[2] == file.name:
                piece[3:] = [0, info["bytes"]]
    part.write_text(json.dumps(content))
    mended = {file.name: info, part.name: {"bytes": part.stat().st_size, "crc32": zlib.crc32(part.read_bytes())}}
    edit(path, files=files | mended)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("archive", [True, False], ids=["in torch's archive", "in a bare pickle"])
@pytest.mark.parametrize("name", ["__0_0.distcp", "objects.pt"])
def test_code_in_a_checkpoint_is_refused_and_not_run(
    strategy: Strategy, saved: Path, tmp_path: Path, name: str, archive: bool
) -> None:
    file, folder = data_folder(saved) / name, tmp_path / "bombed"
    with file.open("wb") as opened:
        torch.save(Bomb(folder), opened) if archive else pickle.dump(Bomb(folder), opened)
    vouch_for(saved, file)
    training = prepare(strategy, net(1), scheduler=step_lr)
    message = failure(lambda: training.load(saved))
    assert str(file) in message and "could run code" in message
    assert not folder.exists()
    torch.load(file, weights_only=False) if archive else pickle.loads(file.read_bytes())
    assert folder.exists()  # the bomb was live


def test_a_newer_format_asks_for_an_upgrade(strategy: Strategy, saved: Path) -> None:
    edit(saved, format=3)
    assert f"{saved} has format 3, newer than this Farandole's 2: upgrade it" in refusal(strategy, saved)


def test_an_older_format_names_the_way_out(strategy: Strategy, saved: Path) -> None:
    (saved / "manifest.json").write_text('{"format": 1, "framework": "torch"}')
    message = refusal(strategy, saved)
    assert f"{saved} has format 1, older than this Farandole's 2: load it with the version that saved it" in message


def test_another_frameworks_checkpoint_is_refused(strategy: Strategy, saved: Path) -> None:
    edit(saved, framework="tensorflow")
    assert "was saved by TensorFlow, not by PyTorch" in refusal(strategy, saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"format": 2, "framework": "torch"}', '{"format": "x"}'])
def test_a_damaged_manifest_is_refused(strategy: Strategy, saved: Path, text: str) -> None:
    (saved / "manifest.json").write_text(text)
    assert f"{saved / 'manifest.json'} is damaged" in refusal(strategy, saved)


@pytest.mark.parametrize(
    "change",
    [
        {"progress": {"epoch": -1, "step": 0}},
        {"progress": {"rank": 1}},
        {"progress": []},
        {"progress": None},
        {"extras": 3},
        {"data": "../elsewhere"},
        {"files": {"../objects.pt": {"bytes": 1, "crc32": 1}}},
        {"tensors": {"model/0.weight": {"shape": "x", "dtype": "float32"}}},
        {"world_size": "2"},
        {"surprise": 1},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(strategy: Strategy, saved: Path, change: dict[str, Any]) -> None:
    edit(saved, **change)
    assert f"{saved / 'manifest.json'} is damaged" in refusal(strategy, saved)


@pytest.mark.parametrize("change", [{"world_size": 2}, {"tensors": {}}])
def test_a_manifest_that_its_parts_contradict_is_refused(
    strategy: Strategy, saved: Path, change: dict[str, Any]
) -> None:
    edit(saved, **change)
    assert f"the manifest of {saved} is damaged" in refusal(strategy, saved)


def test_files_that_no_manifest_names_are_ignored(strategy: Strategy, saved: Path) -> None:
    (saved / "data-ffffffffffffffff").mkdir()
    assert prepare(strategy, net(1), scheduler=step_lr).load(saved) == Progress(0, 3)
    (saved / "manifest.json").unlink()
    assert f"{saved} has no manifest.json: no save to it was ever finished" in refusal(strategy, saved)


def test_a_checkpoint_that_is_not_there_is_named(strategy: Strategy, path: Path) -> None:
    assert f"{path} is not there" in refusal(strategy, path)


def with_one_layer_more() -> nn.Sequential:
    return nn.Sequential(*net(), nn.Linear(1, 1))


def with_one_layer_less() -> nn.Sequential:
    first, _, third, last = net()
    return nn.Sequential(first, nn.Identity(), third, last)


def with_whole_numbers() -> nn.Sequential:
    model = net()
    model[1].register_buffer("running_mean", torch.zeros(6, dtype=torch.int32))
    model[1].eval()
    return model


def reversed_groups(model: nn.Module) -> torch.optim.Optimizer:
    first, second = two_groups(model).param_groups
    return torch.optim.AdamW([{"params": second["params"]}, {"params": first["params"]}])


def one_cycle(optimizer: Any) -> Any:
    return lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=10)


@pytest.mark.parametrize(
    ("make_model", "optimizer", "scheduler", "said"),
    [
        (lambda: net(width=7), adamw, step_lr, "shape (6,) in the checkpoint, (7,) in the model"),
        (with_one_layer_more, adamw, step_lr, "' is not in the checkpoint"),
        (with_one_layer_less, adamw, step_lr, "' is not in the model"),
        (net, sgd, step_lr, "its optimizer is AdamW, but this training uses SGD"),
        (net, two_groups, step_lr, "its optimizer groups parameters in another way"),
        (net, adamw, one_cycle, "its scheduler is StepLR, but this training uses OneCycleLR"),
        (net, adamw, None, "its scheduler is StepLR, but this training uses none"),
    ],
)
def test_what_does_not_fit_this_training_is_refused(
    strategy: Strategy, saved: Path, make_model: Any, optimizer: Make, scheduler: Make | None, said: str
) -> None:
    assert said in refusal(strategy, saved, make_model(), optimizer, scheduler)


def test_values_of_another_kind_are_refused(strategy: Strategy, saved: Path) -> None:
    training = prepare(strategy, with_whole_numbers(), scheduler=step_lr)
    said = "'1.running_mean' is of type torch.float32 in the checkpoint, torch.int32 in the model"
    assert said in failure(lambda: training.load(saved))


def test_a_scheduler_that_the_checkpoint_does_not_have_is_refused(strategy: Strategy, path: Path) -> None:
    prepare(strategy, net()).save(path, Progress())
    message = refusal(strategy, path, net(), adamw, step_lr)
    assert "its scheduler is none, but this training uses StepLR" in message


def test_the_order_of_groups_matters(strategy: Strategy, path: Path) -> None:
    prepare(strategy, net(), two_groups).save(path, Progress())
    assert "groups parameters in another way" in refusal(strategy, path, net(), reversed_groups)
