"""`farandole checkpoint convert --to deepspeed`: plain DeepSpeed, in one process, continues from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from zero_training import (
    ALONE,
    MORE,
    OPTIMIZERS,
    SAVED,
    STAGES,
    convert,
    largest,
    ours,
    plain,
    process_group,
    refused,
    save_ours,
    train,
    train_plain,
    weights_of,
)

from farandole.adapters import Progress, create_strategy
from farandole.adapters.torch.checkpoint import CheckpointReader


@STAGES
@ALONE
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_plain_deepspeed_goes_on_from_ours(tmp_path: Path, stage: int, optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    losses, weights = save_ours(tmp_path / "ours", make)
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 1)
    with process_group():
        engine = plain(stage, make)
        path, client = engine.load_checkpoint(str(tmp_path / "theirs"))
        assert path is not None
        assert client["farandole"] == {
            "progress": {"epoch": SAVED, "step": 0},
            "extras": {"best": 0.5},
            "callbacks": {"Kept": {"n": 1}},
        }
        assert engine.module.note == "kept"
        assert train_plain(engine, MORE) == pytest.approx(losses, abs=1e-6)
        assert largest(weights_of(engine), weights) <= 1e-6


@STAGES
@ALONE
def test_a_training_that_has_not_begun(tmp_path: Path, stage: int) -> None:
    with create_strategy("local", device="cpu") as strategy:
        training = ours(strategy, OPTIMIZERS["adamw"])
        training.save(tmp_path / "ours", Progress())
        losses = train(training, Progress(), MORE)
        weights = {name: value.clone() for name, value in training.weights()}
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 1)
    with process_group():
        engine = plain(stage, OPTIMIZERS["adamw"])
        with torch.no_grad():
            engine.module.norm.running_mean.fill_(9.0)
        engine.load_checkpoint(str(tmp_path / "theirs"))
        assert train_plain(engine, MORE) == pytest.approx(losses, abs=1e-6)
        assert largest(weights_of(engine), weights) <= 1e-6


@STAGES
@ALONE
def test_deepspeeds_own_tool_reads_it(tmp_path: Path, stage: int) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    save_ours(tmp_path / "ours", OPTIMIZERS["adamw"])
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 2)
    found = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "theirs"))
    reader = CheckpointReader(tmp_path / "ours")
    names = {name.removeprefix("model/") for name in reader.tensors if name.startswith("model/")} | {"last.weight"}
    assert found.keys() == names - ({"frozen.weight", "frozen.bias"} if stage == 1 else set())  # it forgets those
    for name, value in found.items():
        assert torch.equal(value, reader.read(f"model/{reader.manifest.aliases.get(name, name)}").to(value.dtype)), name


def test_the_layout_needs_a_stage_and_a_number_of_workers(tmp_path: Path, no_launcher: None) -> None:
    save_ours(tmp_path / "ours", OPTIMIZERS["sgd"])
    assert "--stage and --workers" in refused(tmp_path / "ours", tmp_path / "x", "--to", "deepspeed", "--stage", 2)


def test_an_optimizer_that_looks_at_whole_tensors_is_refused(tmp_path: Path, no_launcher: None) -> None:
    save_ours(tmp_path / "ours", lambda model: torch.optim.Adafactor(model.parameters()))
    words = ("--to", "deepspeed", "--stage", 2, "--workers", 2)
    assert "is Adafactor" in refused(tmp_path / "ours", tmp_path / "x", *words)
    assert list(tmp_path.iterdir()) == [tmp_path / "ours"]


def test_steps_that_differ_within_a_group_are_refused(tmp_path: Path, no_launcher: None) -> None:
    with create_strategy("local", device="cpu") as strategy:
        training = ours(strategy, OPTIMIZERS["adamw"])
        train(training, Progress(), 2)
        head = training.model.head
        training.optimizer.state[head.bias]["step"].fill_(1)
        training.save(tmp_path / "ours", Progress(2, 0))
    message = refused(tmp_path / "ours", tmp_path / "x", "--to", "deepspeed", "--stage", 3, "--workers", 2)
    assert "keeps one 'step' for a group" in message
    assert "1 for 'head.bias'" in message
