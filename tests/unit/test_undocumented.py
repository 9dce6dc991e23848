"""Undocumented names of other libraries: the error if the installed version lacks one."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from farandole.adapters import EngineUnavailableError
from farandole.adapters.undocumented import Library, Method, Name, View

LIBRARY = Library("Some Library", "some_library", ("1.0.0", "1.2.0"), "pip install some-library==1.2.0")


class Engine(View):
    library = LIBRARY
    step = Method("_step")


class Sharded(Engine):
    shards = Name("_shards")


class Real:
    def __init__(self) -> None:
        self._shards = [1]

    def _step(self) -> str:
        return "stepped"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("some_library")
    module.__version__ = "2.0.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_library", module)
    return module


def test_names_are_read_and_set_through_a_view() -> None:
    real = Real()
    view = Sharded(real)
    view.shards = [2]
    assert (view.step(), view.shards, real._shards, view.real) == ("stepped", [2], [2], real)


def test_a_name_that_is_gone_is_said_with_the_versions_that_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    Sharded.check_class(Real)
    monkeypatch.delattr(Real, "_step")
    message = (
        r"^Some Library 2\.0\.0 has no Real\._step, which is needed here and not documented\. Known to work: "
        r"Some Library 1\.0\.0, 1\.2\.0\. Install it: pip install some-library==1\.2\.0$"
    )
    with pytest.raises(EngineUnavailableError, match=message):
        Sharded.check_class(Real)
    with pytest.raises(EngineUnavailableError, match=message):
        Engine(Real())


def test_what_only_objects_have_is_looked_for_in_the_object() -> None:
    real = Real()
    del real._shards
    with pytest.raises(EngineUnavailableError, match=r"has no Real\._shards"):
        Sharded(real)


def test_modules_and_what_is_in_them(installed: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "name", 3, raising=False)
    assert (LIBRARY.load("some_library"), LIBRARY.load("some_library", "name")) == (installed, 3)
    with pytest.raises(EngineUnavailableError, match=r"2\.0\.0 has no some_library\.other"):
        LIBRARY.load("some_library", "other")
    with pytest.raises(EngineUnavailableError, match=r"2\.0\.0 has no some_library\.part"):
        LIBRARY.load("some_library.part")
    with pytest.raises(EngineUnavailableError, match=r"has no SimpleNamespace\.other"):
        LIBRARY.get(SimpleNamespace(), "other")


def test_what_a_module_lacks_itself_is_not_said_of_the_library(installed: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("import no_such_module")
    installed.__path__ = [str(tmp_path)]
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        LIBRARY.load("some_library.part")
