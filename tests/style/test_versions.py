"""The versions that were run are the same in each `compat.py`, the README, the extras and tox."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator

import pytest
from arrows import ROOT, modules
from packaging.requirements import Requirement
from packaging.version import Version

BOUNDED = ("deepspeed", "keras", "lightning")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
ASKED = {(made := Requirement(line)).name: made.specifier for lines in EXTRAS.values() for line in lines}


def libraries() -> Iterator[tuple[str, str, list[str], str]]:
    """Yield the arguments of each `Library(name, module, versions, install)` in a `compat.py`."""
    for path in modules().values():
        if path.name == "compat.py":
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Library":
                    name, module, versions, install = map(ast.literal_eval, node.args)
                    yield name, module, list(versions), install


def rows() -> dict[str, list[str]]:
    """The README's table: by library, first the version that all tests ran with."""
    (table,) = re.findall(
        r"^\| Library \| All tests .*\n\|[- |]+\n((?:\|.*\n)+)", (ROOT / "README.md").read_text(), re.M
    )
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: [version for text in others for version in text.split(", ") if version] for name, *others in cells}


LIBRARIES = {module: (name, versions, install) for name, module, versions, install in libraries()}


def test_each_library_is_there() -> None:
    assert {"torch", "horovod", "deepspeed", "tensorflow", "keras", "lightning"} <= LIBRARIES.keys()


@pytest.mark.parametrize("module", LIBRARIES)
def test_the_table_has_what_is_known_to_work(module: str) -> None:
    name, versions, install = LIBRARIES[module]
    assert sorted(rows()[name], key=Version) == versions
    if "pip install" in install:
        assert install == f"pip install {module}=={versions[-1]}"


@pytest.mark.parametrize("module", sorted(LIBRARIES.keys() - {"horovod"}))
def test_an_extra_begins_and_ends_with_what_was_run(module: str) -> None:
    versions = sorted(map(Version, rows()[LIBRARIES[module][0]]))
    (oldest, *_), newest = versions, versions[-1]
    before = f"{oldest.major}.{oldest.minor - 1}.99" if oldest.minor else f"{oldest.major - 1}.99"
    after = f"{newest.major}.{newest.minor + 1}.0"
    taken = [ASKED[module].contains(version) for version in (before, *map(str, versions), after)]
    assert taken == [False, *(True for _ in versions), module not in BOUNDED]


@pytest.mark.parametrize(
    ("package", "name"),
    [("torch", "PyTorch"), ("tensorflow-cpu", "TensorFlow"), ("keras", "Keras"), ("deepspeed", "DeepSpeed")],
)
def test_all_tests_ran_with_the_first_of_a_row(package: str, name: str) -> None:
    pinned = re.findall(rf"(?<![\w-]){package}==([\d.]+)", (ROOT / "tox.ini").read_text())
    assert pinned == [rows()[name][0]]
