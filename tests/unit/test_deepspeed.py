"""DeepSpeed in one process: refused settings, and models that are partitioned from the start."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from farandole.adapters import DataError, EngineUnavailableError, OptionError, Strategy, Training, create_strategy
from farandole.adapters.checkpoint.manifest import LossScale
from farandole.adapters.torch.engines.deepspeed import compat
from farandole.adapters.torch.engines.deepspeed.loss_scale import read_loss_scale, set_loss_scale
from farandole.adapters.undocumented import Name
from farandole.plugins.gradient_checkpointing import GradientCheckpointing

DynamicLossScaler: Any = pytest.importorskip(
    "deepspeed.runtime.fp16.loss_scaler", reason="DeepSpeed is not installed"
).DynamicLossScaler


def prepare(strategy: Strategy, build: Callable[[], nn.Module], optimizer: Any = None, **arguments: Any) -> Training:
    with strategy.scope():
        model = build()
        made = (optimizer or (lambda m: torch.optim.SGD(m.parameters(), lr=0.1)))(model)
        return strategy.prepare(model, made, lambda m, x: m(x).float().square().mean(), **arguments)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 4)


# Configuration.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"zero_optimisation": {}}, "no setting 'zero_optimisation'.* Did you mean 'zero_optimization'"),
        ({"zero_optimization": {"reduce_bucket": 1}}, "no setting zero_optimization.reduce_bucket"),
        ({"zero_optimization": {"stage": 3}}, "stage=3 .* contradicts .* 2: use strategy 'deepspeed_zero_3'"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme", "nvme_path": "/x"}}}, "trains wrong results"),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "DeepSpeed refuses its config"),
        ({"fp16": {"enabled": True}}, "fp16.enabled=True .* contradicts precision='float32'"),
        ({"optimizer": {"type": "AdamW"}}, "prepare\\(\\) gets the optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "prepare\\(\\) gets the scheduler"),
        ({"gradient_allreduce_op": "sum"}, "the mean over the global batch"),
        ("/no/such/file.json", "cannot be read: No such file"),
    ],
)
def test_what_a_config_must_not_say(config: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_strategy("deepspeed_zero_2", config=config)


def test_a_config_is_a_json_file_too_and_auto_is_silence(tmp_path: Path) -> None:
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps({"train_batch_size": "auto", "gradient_clipping": 0.5}))
    with (
        create_strategy("deepspeed_zero_1", config=path, device="cpu") as strategy,
        pytest.raises(OptionError, match=r"clip_norm=1.0\) contradicts gradient_clipping=0.5"),
    ):
        prepare(strategy, linear, clip_norm=1.0)
    path.write_text("{")
    with pytest.raises(OptionError, match="is not JSON"):
        create_strategy("deepspeed_zero_1", config=path)


def test_contradictions_with_prepare_and_batches_name_both() -> None:
    config = {"gradient_accumulation_steps": 2, "train_micro_batch_size_per_gpu": 3}
    with create_strategy("deepspeed_zero_1", config=config, device="cpu") as strategy:
        with pytest.raises(OptionError, match="accumulate=1\\) contradicts gradient_accumulation_steps=2"):
            prepare(strategy, linear)
        training = prepare(strategy, linear, accumulate=2)
        with pytest.raises(OptionError, match="global_batch_size=8\\) contradicts train_micro_batch_size_per_gpu=3"):
            training.batches(torch.zeros(24, 4), 8)
        assert len(list(training.batches(torch.zeros(24, 4), 6))) == 4
    with create_strategy("deepspeed_zero_1", config={"train_batch_size": 6}, device="cpu") as strategy:
        training = prepare(strategy, linear)
        with pytest.raises(OptionError, match="global_batch_size=8\\) contradicts train_batch_size=6"):
            training.batches(torch.zeros(24, 4), 8)


@pytest.mark.parametrize("clip", [{"config": {"gradient_clipping": 0.01}}, {"clip_norm": 0.01}, {}])
def test_clipping_is_what_was_asked_for_and_else_none(clip: dict[str, Any]) -> None:
    config = clip.pop("config", None)
    with create_strategy("deepspeed_zero_2", config=config, device="cpu") as strategy:
        training = prepare(strategy, linear, **clip)
        before = dict(training.weights())["weight"].clone()
        training.step(next(training.batches(torch.full((4, 4), 9.0), 4)))
        moved = float((dict(training.weights())["weight"] - before).norm())
    assert (moved <= 0.1 * 0.01 * 1.0001) == (config is not None or "clip_norm" in clip)


def test_float16_needs_cuda() -> None:
    with pytest.raises(OptionError, match="no float16 on the CPU"):
        create_strategy("deepspeed_zero_2", precision="fp16", device="cpu")


@pytest.mark.parametrize(
    ("build", "optimizer", "message"),
    [
        (linear, lambda m: torch.optim.Adafactor(m.parameters()), "Adafactor is not known"),
        (linear, lambda m: torch.optim.Muon([m.weight]), "Muon is not known"),
        (lambda: linear().double(), None, "does not train float64"),
        (lambda: linear().bfloat16(), None, "does not train bfloat16 parameters under precision='float32'"),
    ],
)
def test_what_cannot_be_right_is_refused(build: Any, optimizer: Any, message: str) -> None:
    with create_strategy("deepspeed_zero_2", device="cpu") as strategy, pytest.raises(OptionError, match=message):
        prepare(strategy, build, optimizer)


def test_a_gradient_that_is_not_finite_is_not_skipped_in_silence() -> None:
    with create_strategy("deepspeed_zero_2", device="cpu") as strategy:
        training = prepare(strategy, linear)
        with pytest.raises(DataError, match="the gradient is not finite"):
            training.step(next(training.batches(torch.full((4, 4), float("nan")), 4)))


def test_the_loss_scale_moves_between_scalers() -> None:
    """DeepSpeed has no float16 on the CPU, but its scaler runs there."""

    def scaler() -> compat.DynamicScalerView:
        return compat.DynamicScalerView(DynamicLossScaler(64.0, 3, 0.25, 2, False))

    def update(view: compat.DynamicScalerView, *overflows: bool) -> None:
        for overflow in overflows:
            view.real.update_scale(overflow)

    with create_strategy("deepspeed_zero_2", device="cpu") as strategy:
        training: Any = prepare(strategy, linear)
        assert training.engine.loss_scale() is None  # it is constant
        training.engine.load_loss_scale(LossScale(2.0, 1))
        assert training.engine.loss_scale() is None
        one, other = scaler(), scaler()
        update(one, False, True, True, False, False)
        saved = read_loss_scale(one)
        assert saved == LossScale(32.0, 2, hysteresis=1)
        update(other, False)
        set_loss_scale(other, saved)
        for overflow in (False, False, True, False, True, True, False):
            update(one, overflow)
            update(other, overflow)
            assert read_loss_scale(one) == read_loss_scale(other)
        set_loss_scale(other, LossScale(8.0, 0))  # of another engine
        assert read_loss_scale(other) == LossScale(8.0, 0, hysteresis=2)


@pytest.mark.parametrize("name", ["deepspeed_zero_1", "deepspeed_zero_2", "deepspeed_zero_3"])
def test_bfloat16_trains_with_float32_kept(name: str) -> None:
    linear_of_torch = torch.nn.functional.linear
    with create_strategy(name, precision="bf16", device="cpu") as strategy:
        assert not strategy.capabilities.exact
        training = prepare(strategy, linear, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01))
        losses = [float(training.step(batch)) for batch in training.batches(torch.ones(64, 4), 8, epochs=3)]
        assert losses[-1] < losses[0] / 2
        assert {weight.dtype for _, weight in training.weights()} == {torch.bfloat16}
        (weight, _) = training.model.parameters()
        assert training.engine.shard(weight).weight.dtype == torch.float32
    assert torch.nn.functional.linear is linear_of_torch


# A DeepSpeed that lacks a name that we use.


@pytest.mark.parametrize(
    ("name", "owner", "attribute"),
    [
        ("deepspeed_zero_1", "runtime.engine.DeepSpeedEngine", "allreduce_gradients"),
        ("deepspeed_zero_2", "runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer", "update_lp_params"),
        ("deepspeed_zero_2", "comm.comm", "cdb"),
        ("deepspeed_zero_3", "runtime.zero.stage3.DeepSpeedZeroOptimizer_Stage3", "_partition_all_parameters"),
        ("deepspeed_zero_3", "runtime.zero.parameter_offload", "FWD_MODULE_STACK"),
    ],
)
def test_names_that_are_gone_are_told_before_anything_is_built(
    name: str, owner: str, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_strategy(name, device="cpu")
    monkeypatch.delattr(f"deepspeed.{owner}.{attribute}")
    with pytest.raises(EngineUnavailableError, match=rf"{attribute}, .* pip install deepspeed==\d+\.\d+\.\d+$"):
        create_strategy(name, device="cpu")


@pytest.mark.parametrize(("name", "view"), [("deepspeed_zero_2", "Zero12View"), ("deepspeed_zero_3", "Zero3View")])
def test_names_that_only_objects_have_are_told_before_training(
    name: str, view: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_strategy(name, device="cpu") as strategy:
        monkeypatch.setattr(f"{compat.__name__}.{view}.partitions", Name("gone"))
        with pytest.raises(EngineUnavailableError, match=r"DeepSpeed \d.* has no DeepSpeedZeroOptimizer.*\.gone, "):
            prepare(strategy, linear)


# An interrupted build.


def test_a_stale_lock_is_reported_and_a_fresh_one_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    lock = tmp_path / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    with create_strategy("deepspeed_zero_1", device="cpu"):
        pass
    os.utime(lock, (time.time() - 3600,) * 2)
    with pytest.raises(EngineUnavailableError, match=f"rm -r {lock.parent}"), create_strategy("deepspeed_zero_1"):
        pass
    monkeypatch.chdir(lock.parent)  # as a compiler's process
    with create_strategy("deepspeed_zero_1", device="cpu"):
        pass


# Models that are partitioned from the start.


class Parent(nn.Module):
    """Initializes its child's parameters again, in one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.child = nn.Linear(4, 4)
        if how == "init":
            nn.init.constant_(self.child.weight, 0.5)
        elif how == "copy":
            with torch.no_grad():
                self.child.weight.copy_(torch.full((4, 4), 0.5))
        elif how == "apply":
            self.apply(lambda m: nn.init.constant_(m.weight, 0.5) if isinstance(m, nn.Linear) else None)
        elif how == "data":
            self.child.weight.data.fill_(0.5)
        elif how == "assign":
            self.child.weight.data = torch.full((4, 4), 0.5)
        elif how == "fan":
            nn.init.xavier_uniform_(self.child.weight)
        elif how == "row":
            nn.init.zeros_(self.child.weight[0])
        elif how == "truncated":
            nn.init.trunc_normal_(self.child.weight, std=1.0, a=-1.0, b=1.0)
        elif how == "not truncated":
            nn.init.trunc_normal_(nn.init.constant_(self.child.weight, 0.5), mean=0.5, std=1e-12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.child(x)
        return output


@pytest.mark.parametrize("how", ["init", "copy", "apply", "not truncated"])
def test_a_child_may_be_initialized_again(how: str) -> None:
    with create_strategy("deepspeed_zero_3", device="cpu") as strategy:
        training = prepare(strategy, lambda: Parent(how))
        assert training.model.child.weight.numel() == 0, "it was not partitioned"
        assert dict(training.weights())["child.weight"].eq(0.5).all()


@pytest.mark.parametrize("how", ["data", "assign", "fan", "row", "truncated"])
def test_values_that_would_be_lost_are_refused(how: str) -> None:
    with (
        create_strategy("deepspeed_zero_3", device="cpu") as strategy,
        pytest.raises(OptionError, match="would be lost"),
    ):
        prepare(strategy, lambda: Parent(how))


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2)


def test_copies_of_modules_are_refused_inside_the_scope_and_right_outside() -> None:
    with create_strategy("deepspeed_zero_3", device="cpu") as strategy:
        with pytest.raises(OptionError, match=r"nn\.TransformerEncoder does"):
            prepare(strategy, encoder)
        model = encoder()
        training = prepare(strategy, lambda: model)
        assert float(training.step(next(training.batches(torch.ones(4, 3, 4), 4)))) > 0


class Frozen(nn.Module):
    """With frozen layers, whose weights autograd keeps as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = nn.Linear(8, 8)
        self.norm, self.convolution = nn.LayerNorm(8), nn.Conv1d(4, 4, 3, padding=1)
        self.norm.requires_grad_(False)
        self.convolution.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        return x + self.convolution(self.norm(self.trained(x)))


def test_frozen_layers_are_checkpointed_while_parameters_are_gathered() -> None:
    """By default DeepSpeed leaves small parameters whole; large ones are empty again after a forward pass."""

    def losses(callbacks: list[GradientCheckpointing]) -> list[float]:
        def build() -> nn.Module:
            torch.manual_seed(0)
            return nn.Sequential(Frozen(), Frozen())

        def sgd(model: nn.Module) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)

        training = prepare(strategy, build, sgd, callbacks=callbacks)
        data = torch.linspace(-1, 1, 8 * 32).sin().reshape(8, 4, 8)
        return [float(training.step(batch)) for batch in training.batches(data, 4, epochs=2)]

    config = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    with create_strategy("deepspeed_zero_3", device="cpu", config=config) as strategy:
        assert losses([GradientCheckpointing()]) == losses([])


def test_the_scope_leaves_torch_alone_after_prepare() -> None:
    with create_strategy("deepspeed_zero_3", precision="bf16", device="cpu") as strategy, strategy.scope():
        model = linear()
        strategy.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1), lambda m, x: m(x).mean())
        assert torch.zeros(3).dtype == torch.float32
        assert nn.Linear(2, 2).weight.numel() == 4
