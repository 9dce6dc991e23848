"""The `memory` experiment: what it starts, how it counts, and what makes it fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import click
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from farandole.adapters import OptionError
from farandole.experiments.experiment import Finished, Job, Row
from farandole.experiments.memory import models, shapes
from farandole.experiments.memory.experiment import Memory
from farandole.experiments.memory.measure import measure
from farandole.experiments.memory.settings import setting, settings_of
from farandole.experiments.peak import FREE_AT_ONCE
from farandole.plugins.conformance.torch.living import living_bytes

MB = 1_000_000
RESULT: dict[str, Any] = {
    "peak": 100 * MB,
    "seconds": 1.0,
    "losses": [2.0, 1.0],
    "grad_diff": 0.0,
    "activations": 100 * MB,
    "predicted_bytes": None,
    "budget": None,
    "device": "cpu",
}
BLOCKS = {"peak": 30 * MB, "seconds": 1.3, "activations": 20 * MB, "native_ratio": 1.0}
HALF = {"peak": 60 * MB, "seconds": 1.1, "activations": 49 * MB, "predicted_bytes": 49.5 * MB, "budget": 50 * MB}


def rows(strategy: str = "ddp", workers: int = 2, **settings: dict[str, Any]) -> list[Row]:
    """Rows of settings, of which the results are as in `RESULT`, but for these changes."""
    known = {"none": {}, "native": BLOCKS, "blocks": BLOCKS, **{key.strip("_"): of for key, of in settings.items()}}
    return Memory().rows(
        [
            Finished(
                Job(strategy, workers, {"model": "convnet", "setting": name.replace("_", ".")}),
                [RESULT | changes] * workers if "refused" not in changes else [changes] * workers,
            )
            for name, changes in known.items()
        ]
    )


def test_settings_have_names() -> None:
    assert setting("none").options is None and not setting("none").native
    assert setting("native").options is None and setting("native").native
    assert setting("blocks").options == {}
    assert setting("operators 0.5").options == {"operators": True, "budget": 0.5}
    assert (setting("0.25").options, setting("0.25").share) == ({"budget": 0.25}, 0.25)
    context, option = click.Context(click.Command("memory")), click.Option(["--settings"])
    assert settings_of(context, option, "0.5, none") == ["none", "native", "blocks", "0.5"]
    budgets = settings_of(context, option, "budgets,operators 0.5")[3:]
    assert budgets == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1", "operators 0.5"]
    assert [setting(name).share for name in settings_of(context, option, "torch")[3:]] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    assert setting("torch 0.2").options is None
    for wrong in ("1.5", "0", "blokcs", "native 0.5", "nan", "torch 1.5"):
        with pytest.raises(OptionError, match="there is no setting"):
            setting(wrong)


def test_each_setting_is_a_job_that_returns_freed_memory() -> None:
    asked = {"models": ["convnet"], "settings": ["none", "native", "blocks", "operators", "torch 0.5"], "steps": 2}
    jobs = Memory().jobs(["tf_local", "local", "ddp"], [1], asked)
    assert [job.options["setting"] for job in jobs if job.strategy == "local"] == asked["settings"]
    assert [job.options["setting"] for job in jobs if job.strategy == "ddp"] == asked["settings"][:4]
    assert [job.options["setting"] for job in jobs if job.strategy == "tf_local"] == asked["settings"][:3]
    assert all(job.env == FREE_AT_ONCE for job in jobs)


def test_rows_hold_what_their_names_say() -> None:
    found = rows(_0_5=HALF)
    assert Memory().judge(found) == []
    half = found[-1]
    assert list(half)[:10] == [column.name for column in Memory.columns]
    assert half["setting"] == "0.5"
    assert (half["activation_mb"], half["predicted_mb"], half["budget_mb"]) == (49, 49.5, 50)
    assert (half["peak_mb"], half["native_peak_mb"]) == (60, 30)
    assert (half["step_ms"], half["native_step_ms"]) == (1100, 1300)
    assert half["added_share"] == pytest.approx(1 / 3)
    assert (half["loss_diff"], half["grad_diff"]) == (0, 0)


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"blocks": BLOCKS | {"peak": 31 * MB}}, "setting=blocks: peak_mb is 31, must be at most 30.9"),
        ({"blocks": BLOCKS | {"native_ratio": 1.06}}, "setting=blocks: native_ratio is 1.06, must be at most 1.05"),
        ({"blocks": BLOCKS | {"native_ratio": None}}, "setting=blocks: native_ratio is missing"),
        ({"blocks": BLOCKS | {"losses": [2.0, 1.1]}}, "setting=blocks: loss_diff is 0.1, must be at most 0"),
        ({"blocks": BLOCKS | {"grad_diff": 1e-9}}, "setting=blocks: grad_diff is 1e-09, must be at most 0"),
        ({"blocks": BLOCKS | {"grad_diff": None}}, "setting=blocks: grad_diff is missing"),
        ({"_0_5": HALF | {"activations": 51 * MB}}, "setting=0.5: activation_mb is 51, must be at most 50"),
        ({"_0_5": HALF | {"activations": 46 * MB}}, "setting=0.5: activation_mb is 46, must be at least 47.02"),
        ({"_0_5": HALF | {"predicted_bytes": 51 * MB}}, "setting=0.5: predicted_mb is 51, must be at most 50"),
        ({"_0_5": HALF | {"predicted_bytes": None}}, "setting=0.5: predicted_mb is missing"),
        ({"_0_5": HALF | {"peak": 90 * MB}}, "setting=0.5: peak_mb is 90, must be at most 85.5294"),
        ({"_0_5": HALF | {"seconds": 1.25}}, "setting=0.5: added_share is 0.8333, must be at most 0.8"),
        ({"_0_5": {"refused": "no"}}, "setting=0.5, refused=no: a share of 0.21 fits"),
        ({"operators 0.3": {"refused": "no"}}, "setting=operators 0.3, refused=no: a share of 0.21 fits"),
        ({"_0_5": HALF, "_0_75": HALF | {"activations": 48 * MB}}, "setting=0.5: activation_mb is 49, must be at most"),
    ],
)
def test_a_bound_that_is_missed_is_named(changes: dict[str, Any], failure: str) -> None:
    failures = Memory().judge(rows(**changes))
    assert failures
    assert failures[0].replace(", device=cpu", "").startswith(f"strategy=ddp, workers=2, model=convnet, {failure}")


def test_what_is_allowed_is_not_judged() -> None:
    refused = rows(_0_1={"refused": "the floor is higher"})
    assert refused[-1]["peak_mb"] is None and Memory().judge(refused) == []
    assert refused[-1]["refused"] == "the floor is higher"
    assert Memory().judge(rows(**{"operators 0.2": {"refused": "the floor is higher"}})) == []
    assert Memory().judge(rows(**{"torch 0.5": {"grad_diff": 0.5, "activations": None}})) == []
    assert Memory().judge(rows(native=BLOCKS | {"grad_diff": 0.5})) == []
    rounded = {"blocks": BLOCKS | {"grad_diff": 9e-7}}
    assert Memory().judge(rows(workers=3, **rounded)) == []
    tensorflow = rows("tf_horovod", _0_5=HALF | {"activations": None, "grad_diff": 9e-7, "peak": 87 * MB})
    assert Memory().judge(tensorflow) == []


def test_a_picture_has_each_measured_setting(tmp_path: Path) -> None:
    measured = rows(_0_5=HALF, _0_75=HALF | {"peak": 80 * MB, "seconds": 1.05}, _0_1={"refused": "no"})
    file = tmp_path / "memory.svg"
    assert Memory().files(measured, {"picture": None}) == {}
    (text,) = Memory().files([*measured, *rows("local", 1)], {"picture": file}).values()
    picture = ElementTree.fromstring(text)
    svg = "{http://www.w3.org/2000/svg}"
    first, second = picture.findall(f"{svg}g")
    words = [one.text for one in first.iter(f"{svg}text")]
    assert words[0] == "ddp, 2 workers: convnet"
    assert {"none", "native", "blocks", "0.5", "0.75"} < set(words) and "0.1" not in words
    assert len([*first.iter(f"{svg}circle")]) == 5 and len([*second.iter(f"{svg}circle")]) == 3
    places = {one.text: float(one.get("x", 0)) for one in first.iter(f"{svg}text")}
    assert places["blocks"] < places["0.5"] < places["0.75"] < places["none"]
    (line,) = (one for one in first.iter(f"{svg}polyline") if one.get("stroke") != "gray")
    assert len(line.get("points", "").split()) == 2, "the budgets are connected"


def test_torchs_own_budget_saves_less() -> None:
    """Compiled without its code generator, which takes long."""

    def saved(share: float) -> int:
        torch.compiler.reset()  # or it would compile for any share
        model = models.build_model(shapes.Transformer(blocks=2, width=32, heads=2, length=32, batch=4), native=False)
        models.compile_within(model, share, "aot_eager_decomp_partition")
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(torch.zeros(4, 32, dtype=torch.long))
        return sum(sizes.values())

    assert 0 < saved(0.0) < 0.7 * saved(1.0)


def test_a_checkpointed_layer_leaves_its_input_and_comes_back_whole() -> None:
    """By hand: four layers of one tanh after the other, each of which saves what it returns."""
    size = 250_000 * 4
    blocks = [nn.Sequential(nn.Tanh(), nn.Tanh(), nn.Tanh(), nn.Tanh()) for _ in range(4)]
    start = torch.randn(250_000, requires_grad=True)

    def step(checkpointed: bool) -> None:
        hidden = start
        for block in blocks:
            hidden = checkpoint(block, hidden, use_reentrant=False) if checkpointed else block(hidden)
        hidden.sum().backward()

    model = nn.Sequential(*blocks)
    assert living_bytes(model, lambda: step(False)) == pytest.approx(16 * size, rel=0.01)
    # The inputs of all but the first, which was there before, the result, and the last one's activations.
    assert living_bytes(model, lambda: step(True)) == pytest.approx(8 * size, rel=0.01)


@pytest.mark.usefixtures("no_launcher", "one_thread")
@pytest.mark.parametrize(
    "shape",
    [
        shapes.Transformer(blocks=4, width=32, heads=2, length=32, batch=8),
        shapes.Convnet(blocks=4, width=8, size=16, batch=8),
    ],
)
def test_a_worker_measures_each_setting(shape: shapes.Shape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(shapes.SHAPES, "convnet", shape)
    found = {name: measure("local", "convnet", name, 1, tmp_path) for name in ("none", "blocks", "0.7", "0.01")}
    plain, blocks, budget, refused = found.values()
    assert list(refused) == ["refused"]
    assert blocks["losses"] == budget["losses"] == plain["losses"]
    assert blocks["grad_diff"] == budget["grad_diff"] == 0
    assert 0 < blocks["native_ratio"] < 10 and "native_ratio" not in budget
    assert blocks["activations"] < budget["activations"] <= budget["budget"] < plain["activations"]
    assert budget["activations"] == pytest.approx(budget["predicted_bytes"], rel=0.05)
