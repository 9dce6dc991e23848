"""Undocumented names of other libraries stand in a `compat.py`, once."""

from __future__ import annotations

from pathlib import Path

import pytest
from arrows import modules
from private_names import Source, misplaced, repeated

COMPAT = """
class EngineView(View):
    gradients = Name("averaged_gradients")
    step = Method("_step")
"""
SOURCES = {
    "adapters/compat.py": COMPAT,
    "adapters/engine.py": """
import os, sys
import torch
from .compat import EngineView

class Engine:
    _count = 0

    def __init__(self, real):
        self._view = EngineView(real)
        super().__init__()

    def step(self, other):
        Engine._count += 1
        sys._getframe(1), os._exit, torch.__version__, other.__class__
        return self._view.step(), other._view, getattr(other, "_view"), self._view.gradients
""",
    "plugins/callbacks.py": """
from ..adapters.engine import Engine

class Watched(Engine):
    def look(self):
        return self._view
""",
}


def test_none_stands_elsewhere() -> None:
    assert misplaced(modules()) == []


def test_none_stands_twice() -> None:
    files = [path for path in modules().values() if path.name == "compat.py"]
    assert repeated(files) == []
    assert sum(len(Source(path).views) for path in files) > 40, "they would not be found"


def test_names_of_our_own_are_left_alone(tmp_path: Path) -> None:
    assert found(tmp_path, {}) == []


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("def go(real): return real._step()", "_step"),
        ("def go(real): real._step = None", "_step"),
        ("def go(real): return getattr(real, '_step', None)", "_step"),
        ("def go(real): return hasattr(real, f'_{real}__step')", "_"),
        ("def go(engine): return engine._view", "_view"),  # ours, but not this module's
        ("class Own(Base):\n    def go(self): return self._inherited", "_inherited"),
        ("class Own(Base):\n    def go(self): super()._inherited()", "_inherited"),
        ("def go(real): return real.__compatible_ops__", "__compatible_ops__"),
        ("def go(real): return real.averaged_gradients", "averaged_gradients"),
        ("def go(parameter): return parameter.ds_shape", "ds_shape"),
        ("from torch._C import Store", "torch._C.Store"),
        ("from torch.nn.modules.batchnorm import _BatchNorm", "torch.nn.modules.batchnorm._BatchNorm"),
        ("import torch._dynamo", "torch._dynamo"),
        ("importlib.import_module('torch._dynamo')", "torch._dynamo"),
        ("from tensorflow.python.eager import context", "tensorflow.python.eager.context"),
        ("def go(deepspeed): return deepspeed.comm.comm.cdb", "deepspeed.comm.comm.cdb"),
        ("import tensorflow as tf\ntf.python.eager", "tensorflow.python.eager"),
    ],
)
def test_one_that_stands_elsewhere_is_found(tmp_path: Path, line: str, name: str) -> None:
    assert (str(tmp_path / "cli" / "main.py"), name) in found(tmp_path, {"cli/main.py": line})
    assert found(tmp_path, {"cli/main.py": "", "cli/compat.py": line}) == []


def test_one_that_stands_twice_is_found(tmp_path: Path) -> None:
    written(tmp_path, {"cli/compat.py": 'class Other(View):\n    step = Name("_step")'})
    assert repeated([tmp_path / "adapters" / "compat.py", tmp_path / "cli" / "compat.py"]) == ["_step"]


def found(folder: Path, sources: dict[str, str]) -> list[tuple[str, str]]:
    written(folder, sources)
    return [(use.file, use.name) for use in misplaced(modules(folder))]


def written(folder: Path, sources: dict[str, str]) -> None:
    for name, source in {**SOURCES, **sources}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
