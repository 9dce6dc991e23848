"""`farandole checkpoint convert` to DeepSpeed and back, with plain DeepSpeed in one process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from small_training import adamw, manifest_of, net, prepare, snapshot
from small_training import train as train_small
from torch import nn
from torch.nn import functional

from farandole.adapters import Callback, Progress, Strategy, Training, create_strategy
from farandole.adapters.torch.checkpoint import CheckpointReader
from farandole.cli.checkpoint.zero_layout import sub_groups
from farandole.cli.main import main

deepspeed = pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")

X = torch.randn(8, 5, generator=torch.Generator().manual_seed(3))
Y = X.sum(1, keepdim=True)
SAVED, MORE = 4, 4


class Kept(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"n": 1}


class Zoo(nn.Module):
    """A tied weight, a frozen layer, buffers, and more state of its own; sizes that no number of workers divides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(5, 5, bias=False)  # Adam would amplify the rounding of a bias before a normalization
        self.norm = nn.BatchNorm1d(5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.last = nn.Linear(5, 5)
        self.last.weight = self.first.weight
        self.head = nn.Linear(5, 1)
        self.register_buffer("third", torch.full((2,), 1 / 3, dtype=torch.float64))
        self.note = "new"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.frozen(functional.gelu(self.norm(self.first(x))))
        output: torch.Tensor = self.head(functional.gelu(self.last(hidden)))
        return output

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


Make = Callable[[nn.Module], torch.optim.Optimizer]


def groups(model: Any) -> list[dict[str, Any]]:
    """Two groups with other settings; the frozen layer is in one of them."""
    rest = [*model.norm.parameters(), *model.frozen.parameters(), *model.head.parameters(), model.last.bias]
    return [{"params": rest, "lr": 0.01, "weight_decay": 0.1}, {"params": [*model.first.parameters()]}]


OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda model: torch.optim.AdamW(groups(model), lr=0.02),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.02, amsgrad=True),
    "sgd": lambda model: torch.optim.SGD(groups(model), lr=0.02),
    "momentum": lambda model: torch.optim.SGD(groups(model), lr=0.02, momentum=0.9),
}


def decay(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.7)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return functional.mse_loss(model(batch[0]), batch[1])


def ours(strategy: Strategy, make: Make, schedule: bool = True) -> Training:
    model = Zoo()
    optimizer = make(model)
    scheduler = decay(optimizer) if schedule else None
    return strategy.prepare(model, optimizer, loss_of, scheduler, callbacks=[Kept()])


def train(training: Training, start: Progress, steps: int) -> list[float]:
    """Train on the whole data in each step."""
    batches = training.batches((X, Y), len(X), epochs=start.epoch + steps, start=start)
    return [float(training.step(batch)) for batch in batches]


def plain(stage: int, make: Make, schedule: bool = True, **zero: Any) -> Any:
    """An engine as any user of DeepSpeed makes it."""
    config = {
        "train_micro_batch_size_per_gpu": len(X),
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, **zero},
    }
    model = Zoo()
    optimizer = make(model)
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        lr_scheduler=decay(optimizer) if schedule else None,
        config=config,
        dist_init_required=False,
    )
    return engine


def train_plain(engine: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = functional.mse_loss(engine(X), Y)
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
    return losses


def convert(*words: object) -> str:
    result = CliRunner().invoke(main, ["checkpoint", "convert", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    result = CliRunner().invoke(main, ["checkpoint", "convert", *map(str, words)])
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


@pytest.fixture(params=[1, 2, 3])
def stage(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


def process_group() -> Strategy:
    """Return a strategy that only provides plain DeepSpeed's process group while it is entered."""
    return create_strategy("deepspeed_zero_1", device="cpu")


@pytest.fixture
def alone(no_launcher: None, one_thread: None) -> None:
    """One process, without a launcher."""


@pytest.fixture
def joined(alone: None) -> Iterator[Strategy]:
    with process_group() as strategy:
        yield strategy


def save_ours(path: Path, make: Make, schedule: bool = True) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Save after some steps; return the losses and weights of the steps after that."""
    with create_strategy("local", device="cpu") as strategy:
        training = ours(strategy, make, schedule)
        training.model.note = "kept"
        train(training, Progress(), SAVED)
        training.save(path, Progress(SAVED, 0), {"best": 0.5})
        losses = train(training, Progress(SAVED, 0), MORE)
        return losses, {name: value.clone() for name, value in training.weights()}


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        state = engine.module.state_dict()
        return {name: value.clone() for name, value in state.items() if isinstance(value, torch.Tensor)}


def largest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_plain_deepspeed_goes_on_from_ours(tmp_path: Path, stage: int, optimizer: str, alone: None) -> None:
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


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ours_goes_on_from_plain_deepspeed(tmp_path: Path, stage: int, optimizer: str, alone: None) -> None:
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


def test_there_and_back_is_the_same(tmp_path: Path, stage: int, no_launcher: None, one_thread: None) -> None:
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


def test_a_model_without_frozen_parameters(tmp_path: Path, stage: int, strategy: Strategy) -> None:
    training = prepare(strategy, net(), adamw)
    train_small(training, steps=2)
    training.save(tmp_path / "ours", Progress(0, 2))
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 2)
    convert(tmp_path / "theirs", tmp_path / "back", "--to", "farandole", "--trust")
    again = prepare(strategy, net(seed=1), adamw)
    assert again.load(tmp_path / "back") == Progress(0, 2)
    assert snapshot(again) == snapshot(training)


def test_a_large_group_in_parts(tmp_path: Path, alone: None) -> None:
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


def test_bf16_there_and_back_keeps_the_float32_of_the_update(tmp_path: Path, stage: int, joined: Strategy) -> None:
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


def test_a_training_that_has_not_begun(tmp_path: Path, stage: int, alone: None) -> None:
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


def test_deepspeeds_own_tool_reads_it(tmp_path: Path, stage: int, no_launcher: None, one_thread: None) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    save_ours(tmp_path / "ours", OPTIMIZERS["adamw"])
    convert(tmp_path / "ours", tmp_path / "theirs", "--to", "deepspeed", "--stage", stage, "--workers", 2)
    found = get_fp32_state_dict_from_zero_checkpoint(str(tmp_path / "theirs"))
    reader = CheckpointReader(tmp_path / "ours")
    names = {name.removeprefix("model/") for name in reader.tensors if name.startswith("model/")} | {"last.weight"}
    assert found.keys() == names - ({"frozen.weight", "frozen.bias"} if stage == 1 else set())  # it forgets those
    for name, value in found.items():
        assert torch.equal(value, reader.read(f"model/{reader.manifest.aliases.get(name, name)}").to(value.dtype)), name


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_weights_without_optimizer_state_reach_partitioned_parameters(tmp_path: Path, no_launcher: None) -> None:
    from torch.distributed import checkpoint as dcp

    model = nn.Linear(5, 3)
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    convert(tmp_path / "dcp", tmp_path / "ours", "--to", "farandole", "--trust")
    with create_strategy("deepspeed_zero_3", device="cpu") as strategy, strategy.scope():
        other = nn.Linear(5, 3)
        training = strategy.prepare(other, torch.optim.AdamW(other.parameters()), lambda m, x: m(x).mean())
        with pytest.warns(UserWarning, match="no optimizer state"):
            training.load(tmp_path / "ours")
        assert largest(dict(training.weights()), model.state_dict()) == 0
        assert float(training.step(next(training.batches(torch.ones(4, 5), 4)))) == pytest.approx(
            model(torch.ones(4, 5)).mean().item(), abs=1e-6
        )


# Unknown settings must be given, and wrong ones are refused.


@pytest.fixture
def theirs(tmp_path: Path, joined: Strategy) -> Path:
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
