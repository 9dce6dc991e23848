"""A wheel and an editable install: built from a copy of the tree, and tried in otherwise empty environments."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from packaging.metadata import Metadata

ROOT = Path(__file__).parents[2]
FOLDERS = ("adapters", "plugins", "experiments", "cli")
EXTRAS = {"horovod", "deepspeed", "torch", "tensorflow", "lightning", "comet", "report", "tensorboard", "all"}

# Runs in an environment that has Farandole and nothing else. It prints where the package is.
PROGRAM = """\
import sys
import farandole.adapters as adapters
assert "torch" not in sys.modules and "numpy" not in sys.modules
try:
    adapters.create_strategy("ddp")
except adapters.EngineUnavailableError as error:
    assert "pip install 'farandole[torch]'" in str(error), error
else:
    raise AssertionError("there is no torch here")
try:
    import adapters as generic_name
except ModuleNotFoundError:
    pass
else:
    raise AssertionError(f"the name is taken from everybody else by {generic_name}")
print(adapters.__path__[0])
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source, so that building leaves nothing in the tree."""
    tree = tmp_path_factory.mktemp("source") / "farandole"
    tree.mkdir()
    for folder in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(out), str(tree))
    (wheel,) = out.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Metadata:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name))


def python(*arguments: str, cwd: Path | None = None) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def use_in_an_empty_environment(wheel: Path, folder: Path) -> Path:
    """Install a wheel without its dependencies, run PROGRAM, and return where it found `farandole.adapters`."""
    venv.create(folder, symlinks=True, with_pip=False)
    interpreter = str(folder / "bin/python")
    python("-m", "pip", "--python", interpreter, "install", "--no-deps", "--no-index", str(wheel))
    done = subprocess.run([interpreter, "-I", "-c", PROGRAM], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).resolve()


def test_wheel_holds_all_files_of_the_package_and_no_others(tree: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = (path for folder in FOLDERS for path in (tree / folder).rglob("*") if path.is_file())
    assert shipped == {f"farandole/{path.relative_to(tree)}" for path in files}
    assert shipped >= {f"farandole/{folder}/py.typed" for folder in FOLDERS}


def test_wheel_holds_the_licence(wheel: Path, metadata: Metadata) -> None:
    assert metadata.license_expression == "Apache-2.0"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/licenses/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_metadata(metadata: Metadata) -> None:
    assert set(metadata.provides_extra or []) >= EXTRAS
    assert metadata.requires_python is not None
    assert [version in metadata.requires_python for version in ("3.10.14", "3.11.0", "3.13.1")] == [False, True, True]
    assert metadata.description == (ROOT / "README.md").read_text()


def test_extra_all_asks_for_every_engine(metadata: Metadata) -> None:
    (everything,) = (
        requirement
        for requirement in metadata.requires_dist or []
        if requirement.name == "farandole" and str(requirement.marker) == 'extra == "all"'
    )
    assert everything.extras >= EXTRAS - {"all"}


def test_command_of_the_wheel_can_be_loaded(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/entry_points.txt"))
        section, line = archive.read(name).decode().split("\n")[:2]
    command, target = line.split(" = ")
    assert (section, command) == ("[console_scripts]", "farandole")
    assert callable(EntryPoint(command, target, "console_scripts").load())


def test_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    found = use_in_an_empty_environment(wheel, tmp_path)
    assert found.is_relative_to(tmp_path.resolve())


def test_editable_install_works_in_an_empty_environment(tree: Path, tmp_path: Path) -> None:
    # What `pip install --editable` does (PEP 660); pip itself would want setuptools in the empty environment.
    build = f"from setuptools.build_meta import build_editable; build_editable({str(tmp_path)!r})"
    python("-c", build, cwd=tree)
    (editable,) = tmp_path.glob("*.whl")
    assert use_in_an_empty_environment(editable, tmp_path / "environment") == (tree / "adapters").resolve()
