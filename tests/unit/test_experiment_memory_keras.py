"""The `memory` experiment's measures in TensorFlow, in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from farandole.experiments.memory import shapes
from farandole.experiments.memory.measure import measure

pytestmark = pytest.mark.usefixtures("no_launcher")


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (shapes.Transformer(blocks=2, width=16, heads=2, length=16, batch=4), ("none", "native", "blocks")),
        (shapes.Convnet(blocks=2, width=8, size=8, batch=4), ("none", "blocks")),
    ],
)
def test_a_worker_measures_keras_models(
    shape: shapes.Shape, settings: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shapes.SHAPES, "convnet", shape)
    found = {name: measure("tf_local", "convnet", name, 1, tmp_path) for name in settings}
    plain, blocks = found["none"], found["blocks"]
    assert blocks["losses"] == pytest.approx(plain["losses"], abs=1e-6)
    assert blocks["grad_diff"] <= 1e-6
    if "native" in found:  # it draws another mask for dropout
        assert found["native"]["grad_diff"] > 0.01
    for result in found.values():
        assert (result["activations"], result["device"]) == (None, "cpu")
        assert result["peak"] >= 0 and result["seconds"] > 0
