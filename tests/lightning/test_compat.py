"""The names that Lightning does not document: missed when the plugin is imported, and used in one module only."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from farandole.adapters import EngineUnavailableError
from farandole.plugins.lightning import compat

FOLDER = Path(inspect.getfile(compat)).parent


def look_again() -> None:
    assert compat.__spec__ is not None and compat.__spec__.loader is not None
    compat.__spec__.loader.exec_module(importlib.util.module_from_spec(compat.__spec__))


@pytest.mark.parametrize(("owner", "name"), compat.names, ids=lambda value: getattr(value, "__name__", value))
def test_a_name_that_is_gone(owner: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_again()
    if hasattr(owner, name):
        for each in inspect.getmro(owner) if inspect.isclass(owner) else [owner]:
            if name in vars(each):
                monkeypatch.delattr(each, name)
    else:
        monkeypatch.setattr(owner, "__init__", _without(inspect.unwrap(owner.__init__), name))
    with pytest.raises(EngineUnavailableError, match=rf'{name}, which lightning .* pip install "lightning==2\.6\.6"'):
        look_again()


def _without(function: Any, name: str) -> Any:
    code = function.__code__
    names = tuple("other" if known == name else known for known in code.co_names)
    return types.FunctionType(code.replace(co_names=names), {}, closure=function.__closure__)


def test_what_is_said_when_the_plugin_is_imported() -> None:
    lines = [
        "import lightning.fabric.utilities.data as data",
        "del data._auto_add_worker_init_fn",
        "import farandole.plugins.lightning",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "uses utilities.data._auto_add_worker_init_fn, which lightning" in done.stderr.splitlines()[-1]


def test_no_other_module_uses_such_names() -> None:
    """An attribute that begins with an underscore is one that a module of ours sets, or defines."""
    used: dict[str, str] = {}
    own: set[str] = set()
    for path in FOLDER.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and _is_private(node.attr):
                if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
                    own.add(node.attr)
                elif path.name != "compat.py":
                    used[node.attr] = f"{path.name}:{node.lineno}"
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                own.add(node.target.id)
    private = {name for _, name in compat.names if _is_private(name)}
    assert private, "there are some"
    assert {name: where for name, where in used.items() if name not in own or name in private} == {}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
