"""`farandole checkpoint export`, and `convert` from and to torch.distributed.checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file
from small_training import adamw, data_folder, failure, net, prepare, sgd, snapshot, step_lr, train
from torch import nn
from torch.distributed import checkpoint as dcp

from farandole.adapters import Progress, Strategy, Training, create_strategy
from farandole.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # by plain `dcp` here


def run(*words: object) -> Result:
    return CliRunner().invoke(main, ["checkpoint", *map(str, words)])


def succeed(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


class Tied(nn.Module):
    """A tied weight, a buffer, a scalar, an empty parameter, and more state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.outer = nn.Linear(4, 4)
        self.outer.weight = self.inner.weight
        self.head = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.ones(()))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
        self.note = "new"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        output: torch.Tensor = self.head(self.outer(self.inner(x))) * self.scale
        return output

    def get_extra_state(self) -> Any:
        return self.note

    def set_extra_state(self, state: Any) -> None:
        self.note = state


@pytest.fixture
def saved(strategy: Strategy, tmp_path: Path) -> tuple[Path, Training]:
    training = prepare(strategy, Tied(), adamw)
    training.model.note = "kept"
    _, progress = train(training, steps=2)
    training.save(tmp_path / "ours", progress)
    return tmp_path / "ours", training


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}


def assert_equal(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


# To safetensors.


def test_a_safetensors_file_has_exactly_the_weights(saved: tuple[Path, Training], tmp_path: Path) -> None:
    path, training = saved
    out = tmp_path / "model.safetensors"
    result = run("export", path, out)
    assert (result.exit_code, result.stderr) == (0, "Left out '_extra_state': it is not a tensor.\n")
    assert_equal(load_file(out), tensors(training.model))
    with safe_open(out, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_floating_point_is_converted_and_the_rest_is_not(
    saved: tuple[Path, Training], tmp_path: Path, dtype: str
) -> None:
    path, training = saved
    succeed("export", path, tmp_path / "x", "--dtype", dtype)
    wanted = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in tensors(training.model).items()
    }
    assert_equal(load_file(tmp_path / "x"), wanted)


def test_nothing_is_written_over_and_nothing_half_written_stays(saved: tuple[Path, Training], tmp_path: Path) -> None:
    path, _ = saved
    (tmp_path / "x").write_text("mine")
    assert "exists already" in refused("export", path, tmp_path / "x")
    assert "exists already" in refused("convert", path, tmp_path / "x", "--to", "dcp")
    assert (tmp_path / "x").read_text() == "mine"
    (data_folder(path) / "__0_0.distcp").write_bytes(b"")
    assert "is damaged" in refused("export", path, tmp_path / "y")
    assert "is damaged" in refused("convert", path, tmp_path / "y", "--to", "dcp")
    assert {file.name for file in tmp_path.iterdir()} == {"ours", "x"}


# To and from torch.distributed.checkpoint.


def test_plain_pytorch_loads_the_folder(saved: tuple[Path, Training], tmp_path: Path) -> None:
    path, training = saved
    succeed("convert", path, tmp_path / "dcp", "--to", "dcp")
    model = Tied()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    state = model.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    model.load_state_dict(state)
    assert model.note == "kept"
    assert_equal(tensors(model), tensors(training.model))


@pytest.mark.parametrize("key", [None, "model"])
def test_a_folder_of_plain_pytorchs_is_taken_up(strategy: Strategy, tmp_path: Path, key: str | None) -> None:
    model = net(seed=5)
    other = {"optimizer": adamw(model).state_dict(), "epoch": 3}
    state: dict[str, Any] = model.state_dict() if key is None else {key: model.state_dict(), **other}
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    words = ("convert", tmp_path / "dcp", tmp_path / "ours", "--to", "farandole", "--trust", "--progress", 1, 2)
    if key is not None:
        assert "choose the model's with --key: model, optimizer" in refused(*words)
        words = (*words, "--key", key)
    assert "without optimizer state" in succeed(*words)

    training = prepare(strategy, net(), adamw, step_lr)
    train(training, steps=3)
    optimizer, scheduler = training.optimizer.state_dict(), training.scheduler.state_dict()
    with pytest.warns(UserWarning, match="holds no optimizer state: the weights are loaded"):
        assert training.load(tmp_path / "ours") == Progress(1, 2)
    assert_equal(dict(training.weights()), model.state_dict())
    assert str(training.optimizer.state_dict()) == str(optimizer)
    assert training.scheduler.state_dict() == scheduler
    train(training, Progress(1, 2), steps=1)
    training.save(tmp_path / "next", Progress(1, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = prepare(strategy, net(), adamw, step_lr)
        again.load(tmp_path / "next")
    assert snapshot(again) == snapshot(training)


def test_weights_from_elsewhere_must_fit_all_the_same(strategy: Strategy, tmp_path: Path) -> None:
    dcp.save(net(width=7).state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    succeed("convert", tmp_path / "dcp", tmp_path / "ours", "--to", "farandole", "--trust")
    message = failure(lambda: prepare(strategy, net(), sgd).load(tmp_path / "ours"))
    assert "has shape (7,) in the checkpoint, (6,) in the model" in message


def test_what_is_tied_must_be_said(strategy: Strategy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Tied()
    state = tensors(model)
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    words = ("convert", tmp_path / "dcp", tmp_path / "ours", "--to", "farandole", "--trust", "--tied")
    assert "two names of tensors" in refused(*words, "outer.weight=gone")
    assert "their values" in refused(*words, "outer.bias=inner.bias")
    succeed(*words, "outer.weight=inner.weight")
    monkeypatch.delattr(Tied, "get_extra_state")
    training = prepare(strategy, Tied(), sgd)
    with pytest.warns(UserWarning, match="no optimizer state"):
        training.load(tmp_path / "ours")
    assert_equal(tensors(training.model), state)


def test_there_and_back(strategy: Strategy, tmp_path: Path) -> None:
    training = prepare(strategy, net(seed=3), sgd)
    training.save(tmp_path / "plain", Progress())
    succeed("convert", tmp_path / "plain", tmp_path / "dcp", "--to", "dcp")
    succeed("convert", tmp_path / "dcp", tmp_path / "back", "--to", "farandole", "--trust")
    succeed("export", tmp_path / "back", tmp_path / "back.safetensors")
    assert_equal(load_file(tmp_path / "back.safetensors"), dict(training.weights()))


def test_weights_without_optimizer_state_reach_partitioned_parameters(tmp_path: Path, no_launcher: None) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    model = nn.Linear(5, 3)
    dcp.save(model.state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    succeed("convert", tmp_path / "dcp", tmp_path / "ours", "--to", "farandole", "--trust")
    with create_strategy("deepspeed_zero_3", device="cpu") as strategy, strategy.scope():
        other = nn.Linear(5, 3)
        training = strategy.prepare(other, torch.optim.AdamW(other.parameters()), lambda m, x: m(x).mean())
        with pytest.warns(UserWarning, match="no optimizer state"):
            training.load(tmp_path / "ours")
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in training.weights())
        assert float(training.step(next(training.batches(torch.ones(4, 5), 4)))) == pytest.approx(
            model(torch.ones(4, 5)).mean().item(), abs=1e-6
        )


# Refused.


def test_formats_and_options_that_do_not_go_together(saved: tuple[Path, Training], tmp_path: Path) -> None:
    path, _ = saved
    succeed("convert", path, tmp_path / "dcp", "--to", "dcp")
    out = tmp_path / "x"
    assert "nothing to convert" in refused("convert", path, out, "--to", "farandole")
    assert "--to farandole first" in refused("convert", tmp_path / "dcp", out, "--to", "deepspeed")
    assert "--to farandole first" in refused("export", tmp_path / "dcp", out)
    assert "convert" in refused("info", tmp_path / "dcp")
    assert "--stage has no effect" in refused("convert", path, out, "--to", "dcp", "--stage", 2)
    assert "--trust has no effect" in refused("convert", path, out, "--to", "dcp", "--trust")
    assert "is not there" in refused("convert", tmp_path / "gone", out, "--to", "dcp")
    assert "is not a checkpoint" in refused("convert", tmp_path, out, "--to", "dcp")
    assert "is not on this machine" in refused("convert", path, "memory://x", "--to", "dcp")
    assert not out.exists()


def test_pickles_are_not_read_without_trust(tmp_path: Path) -> None:
    dcp.save(net().state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    (tmp_path / "dcp" / ".metadata").write_bytes(b"unread")
    words = ("convert", tmp_path / "dcp", tmp_path / "x", "--to", "farandole")
    assert "if you trust the author, add --trust" in refused(*words)
    assert ".metadata could not be read" in refused(*words, "--trust")


def test_a_torn_checkpoint_is_refused(saved: tuple[Path, Training], tmp_path: Path) -> None:
    path, _ = saved
    (path / "manifest.json").unlink()
    assert "has no manifest.json" in refused("export", path, tmp_path / "x")
    assert "has no manifest.json" in refused("convert", path, tmp_path / "x", "--to", "dcp")


def test_a_checkpoint_without_optimizer_state_has_no_zero_layout(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
    dcp.save(net().state_dict(), checkpoint_id=tmp_path / "dcp", no_dist=True)
    succeed("convert", tmp_path / "dcp", tmp_path / "ours", "--to", "farandole", "--trust")
    words = ("convert", tmp_path / "ours", tmp_path / "x", "--to", "deepspeed", "--stage", 1, "--workers", 1)
    assert "has no optimizer state" in refused(*words)
