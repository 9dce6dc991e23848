"""`farandole checkpoint convert` from one format to the other and back changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from small_training import adamw, net, prepare, snapshot, train
from torch import nn
from zero_training import ALONE, OPTIMIZERS, STAGES, convert, deepspeed, process_group, save_ours

from farandole.adapters import Progress, Strategy
from farandole.adapters.torch.checkpoint import CheckpointReader


@STAGES
@ALONE
def test_there_and_back_is_the_same(tmp_path: Path, stage: int) -> None:
    """Through files of three workers, bit for bit; without a process group."""
    save_ours(tmp_path / "ours", OPTIMIZERS["adam"], schedule=False)
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 3)
    assert "resumes at" not in convert(tmp_path / "theirs", tmp_path / "back", "--to", "farandole", "--trust")
    before, after = (CheckpointReader(tmp_path / name) for name in ("ours", "back"))
    assert after.tensors == before.tensors
    for name in before.tensors:
        assert torch.equal(after.read(name), before.read(name)), name
    assert after.manifest.callbacks == {"Kept": {"n": 1}}
    for name in ("progress", "extras", "optimizer", "scheduler", "aliases"):
        assert getattr(after.manifest, name) == getattr(before.manifest, name)
    frozen = {"frozen.weight", "frozen.bias"}
    assert set(before.objects["frozen"]) == set(after.objects["frozen"]) == frozen
    assert after.objects["slots"] == before.objects["slots"]
    for group, same in zip(after.objects["groups"], before.objects["groups"], strict=True):
        assert group == {**same, "params": [name for name in same["params"] if name not in frozen]}


@STAGES
def test_a_model_without_frozen_parameters(tmp_path: Path, stage: int, strategy: Strategy) -> None:
    training = prepare(strategy, net(), adamw)
    train(training, steps=2)
    training.save(tmp_path / "ours", Progress(0, 2))
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 2)
    convert(tmp_path / "theirs", tmp_path / "back", "--to", "farandole", "--trust")
    again = prepare(strategy, net(seed=1), adamw)
    assert again.load(tmp_path / "back") == Progress(0, 2)
    assert snapshot(again) == snapshot(training)


@STAGES
@ALONE
def test_bf16_there_and_back_keeps_the_float32_of_the_update(tmp_path: Path, stage: int) -> None:
    x = torch.ones(8, 5)
    config: dict[str, Any] = {"train_micro_batch_size_per_gpu": 8, "zero_allow_untested_optimizer": True}
    config |= {"bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}

    def linear() -> nn.Module:
        torch.manual_seed(0)
        return nn.Linear(5, 3)

    def engine_of(model: nn.Module) -> Any:
        return deepspeed.initialize(
            model=model, optimizer=torch.optim.AdamW(model.parameters()), config=config, dist_init_required=False
        )[0]

    def update(engine: Any) -> torch.Tensor:
        engine.backward(engine(x.bfloat16()).float().square().mean())
        engine.step()
        weight: torch.Tensor = deepspeed.utils.safe_get_full_fp32_param(engine.module.weight)
        return weight.clone()

    with process_group():
        engine = engine_of(linear())
        update(engine)
        engine.save_checkpoint(str(tmp_path / "theirs"))
        after = update(engine)
        convert(tmp_path / "theirs", tmp_path / "ours", "--to", "farandole", "--trust")
        assert CheckpointReader(tmp_path / "ours").tensors["model/weight"].dtype == "float32"
        to = ("--to", "deepspeed", "--stage", stage, "--workers", 1, "--bf16")
        convert(tmp_path / "ours", tmp_path / "again", *to)
        engine = engine_of(linear())
        engine.load_checkpoint(str(tmp_path / "again"))
        assert torch.equal(update(engine), after)
