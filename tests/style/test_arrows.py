"""Arrows run one way: cli -> experiments -> plugins -> adapters; and no module needs one that needs it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from arrows import PACKAGE, ROOT, Arrow, arrows, circle, modules, upward

SOURCES = {
    "adapters/__init__.py": "",
    "adapters/low.py": "from .other import thing",
    "adapters/other.py": "",
    "plugins/__init__.py": "from ..adapters.low import thing",
    "experiments/__init__.py": "",
    "cli/main.py": 'COMMANDS = {"experiment": "..experiments:experiment"}',
}


@pytest.fixture(scope="module")
def ours() -> list[Arrow]:
    return [*arrows(modules())]


def test_none_leads_upward(ours: list[Arrow]) -> None:
    assert upward(ours) == []


def test_none_leads_back(ours: list[Arrow]) -> None:
    assert circle(ours) == []


def test_launchers_know_no_framework() -> None:
    """They import only Python and adapters: finding a worker's rank needs no installed package."""
    found = set()
    for path in (ROOT / "adapters" / "launch").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(str(node.module).partition(".")[0])
    assert {"os", "socket"} <= found <= sys.stdlib_module_names


def test_each_folder_is_reached(ours: list[Arrow]) -> None:
    """Otherwise the two tests above would see nothing."""
    layers = {(arrow.importer.split(".")[1], arrow.imported.split(".")[1]) for arrow in ours}
    assert {("plugins", "adapters"), ("experiments", "plugins"), ("cli", "experiments")} <= layers


@pytest.mark.parametrize(
    ("file", "source", "importer", "imported"),
    [
        ("adapters/low.py", "from ..plugins import thing", "adapters.low", "plugins"),
        ("adapters/low.py", "def late():\n    from .. import experiments", "adapters.low", "experiments"),
        ("plugins/__init__.py", "import farandole.cli.main", "plugins", "cli.main"),
        ("experiments/__init__.py", 'ROW = "farandole.cli.main:main"', "experiments", "cli.main"),
    ],
)
def test_one_that_leads_upward_is_found(tmp_path: Path, file: str, source: str, importer: str, imported: str) -> None:
    (found,) = upward(arrows(written(tmp_path, {**SOURCES, file: source})))
    assert (found.importer, found.imported) == (f"{PACKAGE}.{importer}", f"{PACKAGE}.{imported}")


def test_a_circle_is_found_where_it_is_one_at_run_time(tmp_path: Path) -> None:
    assert circle(arrows(written(tmp_path, SOURCES))) == []
    late = written(tmp_path, {**SOURCES, "adapters/other.py": "def late():\n    from .low import thing"})
    assert circle(arrows(late)) == []
    at_once = written(
        tmp_path, {**SOURCES, "adapters/other.py": "try:\n    from .low import thing\nfinally:\n    pass"}
    )
    assert circle(arrows(at_once)) == [f"{PACKAGE}.adapters.low", f"{PACKAGE}.adapters.other"]


def written(folder: Path, sources: dict[str, str]) -> dict[str, Path]:
    for name, source in sources.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(source)
    return modules(folder)
