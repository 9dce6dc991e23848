"""`farandole checkpoint convert --to farandole`, from what plain DeepSpeed saved in one process."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from small_training import manifest_of
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
    train,
    train_plain,
    weights_of,
)

from farandole.adapters import Progress, create_strategy
from farandole.adapters.torch.checkpoint import CheckpointReader
from farandole.cli.checkpoint.zero_layout import sub_groups


@STAGES
@ALONE
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ours_goes_on_from_plain_deepspeed(tmp_path: Path, stage: int, optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    with process_group():
        engine = plain(stage, make)
        engine.module.note = "kept"
        train_plain(engine, SAVED)
        engine.save_checkpoint(str(tmp_path / "theirs"))
        losses, weights = train_plain(engine, MORE), weights_of(engine)
    words = ("--to", "farandole", "--trust", "--scheduler", "StepLR", "--progress", SAVED, 0)
    said = convert(tmp_path / "theirs", tmp_path / "ours", *words)
    assert f"after {SAVED} steps" in said
    with create_strategy("local", device="cpu") as strategy:
        training = ours(strategy, make)
        progress = training.load(tmp_path / "ours")
        assert progress == Progress(SAVED, 0)
        assert training.model.note == "kept"
        assert train(training, progress, MORE) == pytest.approx(losses, abs=1e-6)
        assert largest(dict(training.weights()), weights) <= 1e-6


@ALONE
def test_a_large_group_in_parts(tmp_path: Path) -> None:
    """Stage 3 splits groups into parts, by default of a billion elements: here of 12."""
    with process_group():
        engine = plain(3, OPTIMIZERS["momentum"], schedule=False, sub_group_size=12)
        train_plain(engine, SAVED)
        engine.save_checkpoint(str(tmp_path / "theirs"))
        names = {parameter: name for name, parameter in engine.module.named_parameters()}
        cut = [[names[parameter] for parameter in part] for part in engine.optimizer.fp16_groups]
        convert(tmp_path / "theirs", tmp_path / "ours", "--to", "farandole", "--trust")
        objects = CheckpointReader(tmp_path / "ours").objects
        sizes = {name: parameter.ds_numel for parameter, name in names.items()}
        ours_cut = [
            list(part)
            for group in objects["groups"]
            for part in sub_groups({name: sizes[name] for name in group["params"]}, 1, 12)
        ]
        assert ours_cut == cut
        assert len(cut) > len(objects["groups"]) == 2
        losses, weights = train_plain(engine, MORE), weights_of(engine)
    with create_strategy("local", device="cpu") as strategy:
        training = ours(strategy, OPTIMIZERS["momentum"], schedule=False)
        training.load(tmp_path / "ours")
        assert train(training, Progress(), MORE) == pytest.approx(losses, abs=1e-6)
        assert largest(dict(training.weights()), weights) <= 1e-6


# Unknown settings must be given, and wrong ones are refused.


@pytest.fixture
def theirs(tmp_path: Path, no_launcher: None, one_thread: None) -> Path:
    with process_group():
        engine = plain(2, OPTIMIZERS["momentum"])
        train_plain(engine, 1)
        engine.save_checkpoint(str(tmp_path / "theirs"))
    return tmp_path / "theirs"


def test_pickles_are_not_read_without_trust(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    folder = tmp_path / "theirs"
    folder.mkdir()
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert "which can run any code of their author" in refused(folder, tmp_path / "x", "--to", "farandole")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "x").exists()


def test_what_deepspeed_does_not_say_is_asked_for(theirs: Path, tmp_path: Path) -> None:
    words = (theirs, tmp_path / "ours", "--to", "farandole", "--trust")
    assert "name it with --scheduler" in refused(*words)
    said = convert(*words, "--scheduler", "none")
    assert "optimizer SGD, scheduler none, after 1 steps" in said
    assert "--progress EPOCH STEP" in said
    assert manifest_of(tmp_path / "ours")["progress"] == {"epoch": 0, "step": 0}


def test_a_tag_folder_will_do(theirs: Path, tmp_path: Path) -> None:
    tag = (theirs / "latest").read_text()
    convert(theirs / tag, tmp_path / "ours", "--to", "farandole", "--trust", "--scheduler", "none")
    (theirs / "latest").write_text("gone")
    assert "names 'gone'" in refused(theirs, tmp_path / "x", "--to", "farandole", "--trust")


def test_a_damaged_file_is_named(theirs: Path, tmp_path: Path) -> None:
    tag = (theirs / "latest").read_text()
    file = theirs / tag / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    file.write_bytes(file.read_bytes()[:1000])
    assert f"{theirs / tag} could not be read" in refused(theirs, tmp_path / "x", "--to", "farandole", "--trust")
    assert not (tmp_path / "x").exists()
