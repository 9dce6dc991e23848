"""The table of strategies: names, options, rows of other distributions, and missing engines."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from farandole import adapters
from farandole.adapters import (
    EngineUnavailableError,
    FarandoleError,
    OptionError,
    UnknownStrategyError,
    create_strategy,
    strategy_row,
    strategy_rows,
)

ROOT = Path(adapters.__file__).parents[1]  # holds adapters/, in a working tree as in an installed wheel
LAUNCHERS = ("FARANDOLE_STRATEGY", "HOROVOD_", "OMPI_", "SLURM_", "TF_CONFIG", "RANK", "WORLD_SIZE", "LOCAL_RANK")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("hovorod", "horovod"), ("Horovod", "horovod"), ("dpp", "ddp"), ("loca", "local")],
)
def test_an_unknown_name_suggests_the_nearest_and_lists_all(name: str, nearest: str) -> None:
    with pytest.raises(UnknownStrategyError) as caught:
        create_strategy(name)
    assert f"there is no strategy {name!r}. Did you mean {nearest!r}?" in str(caught.value)
    assert all(known in str(caught.value) for known in ("local", "ddp", "horovod"))


def test_a_name_like_no_other_suggests_none() -> None:
    with pytest.raises(UnknownStrategyError) as caught:
        create_strategy("qqqq")
    assert "Did you mean" not in str(caught.value)
    assert str(caught.value).endswith(f"Registered: {', '.join(strategy_rows())}")


def test_an_unknown_name_is_a_lookup_error_and_an_unknown_option_a_value_error() -> None:
    with pytest.raises(LookupError):
        strategy_row("nope")
    with pytest.raises(ValueError):
        create_strategy("local", nope=1)


@pytest.mark.parametrize(
    ("strategy", "option", "said"),
    [
        ("ddp", "static_grap", ["no option 'static_grap'", "Did you mean 'static_graph'?", "bucket_cap_mb, "]),
        ("ddp", "compression", ["no option 'compression'", "comm_hook"]),
        ("local", "devise", ["no option 'devise'", "Did you mean 'device'?", "Its options: device"]),
    ],
)
def test_an_unknown_option_suggests_the_nearest_and_lists_all(strategy: str, option: str, said: list[str]) -> None:
    with pytest.raises(OptionError) as caught:
        create_strategy(strategy, **{option: 1})
    message = str(caught.value)
    assert f"strategy {strategy!r}" in message
    assert all(part in message for part in said), message


def test_a_strategy_knows_the_name_it_was_created_by() -> None:
    assert create_strategy("local").name == "local"


def test_without_a_name_it_is_the_one_that_the_process_was_started_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARANDOLE_STRATEGY", "local")
    assert create_strategy(device="cpu").name == "local"
    with pytest.raises(OptionError, match="strategy 'local' has no option 'nope'"):
        create_strategy(nope=1)


def test_a_process_that_was_started_for_no_strategy_must_name_one() -> None:
    with pytest.raises(UnknownStrategyError, match=r"create_strategy\('ddp'\) names one.*FARANDOLE_STRATEGY=ddp"):
        create_strategy()


def test_another_name_than_the_process_was_started_for_warns_and_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARANDOLE_STRATEGY", "ddp")
    with pytest.warns(UserWarning, match="creates strategy 'local', but was started for 'ddp'") as warned:
        assert create_strategy("local").name == "local"
    assert warned[0].filename == __file__  # it points at the caller


def test_options_reach_the_engine() -> None:
    assert create_strategy("ddp", comm_hook="fp16").capabilities.exact is False
    with pytest.raises(OptionError, match="comm_hook='fp15' must be one of none, fp16, bf16, powersgd"):
        create_strategy("ddp", comm_hook="fp15")


def test_rows_say_what_they_are_and_cannot_be_changed() -> None:
    rows = strategy_rows()
    assert {"local", "ddp", "horovod", "tf_local", "tf_multiworker", "tf_horovod"} <= rows.keys()
    assert all(row.name == name and row.description for name, row in rows.items())
    assert [rows[name].launcher for name in ("local", "ddp", "horovod")] == [None, "torchrun", "horovodrun"]
    assert [rows[f"tf_{name}"].launcher for name in ("local", "multiworker", "horovod")] == [
        None,
        "tf_config",
        "horovodrun",
    ]
    with pytest.raises(TypeError):
        rows["mine"] = rows["local"]  # type: ignore[index]


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install distributions as pip would: a folder on the path with the module and its metadata."""
    monkeypatch.syspath_prepend(tmp_path)
    installed: list[str] = []

    def install(module: str, code: str, entry_point: str, distribution: str, summary: str = "") -> None:
        (tmp_path / f"{module}.py").write_text(code)
        metadata = tmp_path / f"{distribution}-1.0.dist-info"
        metadata.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {distribution}", "Version: 1.0"]
        (metadata / "METADATA").write_text("\n".join([*lines, *([f"Summary: {summary}"] if summary else []), ""]))
        (metadata / "entry_points.txt").write_text(f"[farandole.strategies]\n{entry_point}\n")
        installed.append(module)
        importlib.invalidate_caches()
        strategy_rows.cache_clear()

    yield install
    strategy_rows.cache_clear()
    for module in installed:
        sys.modules.pop(module, None)


WALTZ = """
from farandole.adapters.torch.engines.local import LocalStrategy

class Waltz(LocalStrategy):
    def __init__(self, tempo: int = 90, partner: str = ""):
        super().__init__("cpu")
        self.tempo = tempo

class Still(LocalStrategy):
    def __init__(self):
        super().__init__("cpu")
"""


def test_an_installed_distribution_adds_its_strategy(install: Install) -> None:
    install("waltz_engine", WALTZ, "waltz = waltz_engine:Waltz", "waltz-engine", "Three beats a bar")
    row = strategy_row("waltz")
    assert (row.description, row.target) == ("Three beats a bar", "waltz_engine:Waltz")
    assert "waltz_engine" not in sys.modules  # listing imports nothing
    strategy = create_strategy("waltz", tempo=120)
    assert (strategy.name, type(strategy).__name__, strategy.tempo) == ("waltz", "Waltz", 120)  # type: ignore[attr-defined]
    with strategy:
        assert strategy.reduce(2.0) == 2.0


def test_an_added_strategy_is_suggested_and_its_options_are_too(install: Install) -> None:
    install("waltz_engine", WALTZ, "waltz = waltz_engine:Waltz", "waltz-engine")
    with pytest.raises(UnknownStrategyError, match="Did you mean 'waltz'"):
        create_strategy("walz")
    with pytest.raises(OptionError, match=r"Did you mean 'tempo'\? Its options: tempo, partner"):
        create_strategy("waltz", temp=1)


def test_a_strategy_without_options_says_so(install: Install) -> None:
    install("still_engine", WALTZ, "still = still_engine:Still", "still-engine")
    with pytest.raises(OptionError, match=r"strategy 'still' has no option 'tempo'\. It has none\."):
        create_strategy("still", tempo=1)


def test_a_strategy_without_a_summary_is_described_by_its_target(install: Install) -> None:
    install("waltz_engine", WALTZ, "waltz = waltz_engine:Waltz", "waltz-engine")
    assert strategy_row("waltz").description == "waltz_engine:Waltz"


@pytest.mark.parametrize("name", ["ddp", "waltz"])
def test_a_name_that_is_taken_names_its_owner(install: Install, name: str) -> None:
    install("waltz_engine", WALTZ, "waltz = waltz_engine:Waltz", "a-waltz-engine")
    install("rival_engine", WALTZ, f"{name} = rival_engine:Waltz", "rival-engine")
    with pytest.raises(OptionError) as caught:
        create_strategy("local")
    # Of two third-party rows, the error names the second.
    owners = ["rival-engine"] if name == "ddp" else ["rival-engine", "a-waltz-engine"]
    assert any(f"{owner} registers a strategy named '{name}'" in str(caught.value) for owner in owners)
    assert "uninstall or rename it" in str(caught.value)


def test_a_module_of_a_strategy_that_lacks_torch_names_the_fix(install: Install) -> None:
    install("broken_engine", "import torch.no_such_module", "broken = broken_engine:Waltz", "broken-engine")
    with pytest.raises(EngineUnavailableError, match=r"'broken' needs torch.*pip install 'farandole\[torch\]'"):
        create_strategy("broken")


def test_what_else_a_strategy_lacks_is_not_blamed_on_its_engine(install: Install) -> None:
    install("broken_engine", "import no_such_module", "broken = broken_engine:Waltz", "broken-engine")
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught:
        create_strategy("broken")
    assert not isinstance(caught.value, FarandoleError)


def in_environment(code: str, *folders: Path) -> str:
    """Run `code` in an interpreter that sees the standard library, farandole and what is in `folders`, no more."""
    paths = "".join(f"sys.path.append({str(folder)!r});" for folder in folders)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys;{paths}\n{code}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder from which `import farandole` finds what is tested here."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "farandole").symlink_to(ROOT, target_is_directory=True)
    return tmp_path / "package"


CREATE = """
from farandole.adapters import FarandoleError, create_strategy
def attempt(name):
    try:
        print(create_strategy(name).name)
    except FarandoleError as error:
        print(f"{type(error).__name__}: {error}")
"""


def test_without_a_framework_every_strategy_is_listed_and_names_the_fix(package: Path) -> None:
    code = "\nfrom farandole.adapters import strategy_rows\nfor name in strategy_rows(): attempt(name)"
    lines = in_environment(CREATE + code, package).splitlines()
    needs = dict.fromkeys(("local", "ddp", "horovod"), "torch")
    needs |= dict.fromkeys(("tf_local", "tf_multiworker", "tf_horovod"), "tensorflow")
    for name, framework in needs.items():
        assert (
            f"EngineUnavailableError: strategy '{name}' needs {framework}, which is not installed. "
            f"Install it with: pip install 'farandole[{framework}]'"
        ) in lines
    assert all(line.startswith("EngineUnavailableError: strategy ") for line in lines)


@pytest.fixture
def without_horovod(tmp_path: Path) -> Path:
    """A folder with all that is installed beside torch, except Horovod."""
    import torch

    folder = tmp_path / "others"
    folder.mkdir()
    for entry in Path(torch.__file__).parents[1].iterdir():
        if not entry.name.startswith(("horovod", "farandole")):
            (folder / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    return folder


def test_without_horovod_its_strategy_names_the_fix(package: Path, without_horovod: Path) -> None:
    lines = in_environment(f"{CREATE}\nattempt('horovod'); attempt('local')", package, without_horovod).splitlines()
    assert lines == [
        "EngineUnavailableError: strategy 'horovod' needs horovod, which is not installed. "
        "Install it with: farandole horovod install",
        "local",
    ]


def test_horovod_without_its_part_for_torch_names_the_fix(package: Path, without_horovod: Path, tmp_path: Path) -> None:
    """A Horovod built without torch lacks the compiled part; one built for another torch fails to load it."""
    import torch

    spec = importlib.util.find_spec("horovod")
    if spec is None or spec.origin is None:
        pytest.skip("Horovod is not installed, and its Python part cannot be had without building it")
    copy = tmp_path / "horovod" / "horovod"
    shutil.copytree(Path(spec.origin).parent, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = copy / "torch" / f"mpi_lib_v2{sysconfig.get_config_var('EXT_SUFFIX')}"
    code = f"""
attempt("horovod")
for name in [name for name in sys.modules if name.startswith("horovod")]:
    del sys.modules[name]
open({str(library)!r}, "w").close()
attempt("horovod")
"""
    output = in_environment(CREATE + code, package, without_horovod, copy.parent)
    lines = [line for line in output.splitlines() if line.startswith("EngineUnavailableError")]
    fix = "Rebuild it with: farandole horovod install --force"
    assert lines[0] == f"EngineUnavailableError: Horovod is installed, but was built without PyTorch. {fix}"
    assert lines[1].startswith(
        f"EngineUnavailableError: Horovod is installed, but not built for this PyTorch {torch.__version__}"
    )
    assert lines[1].endswith(fix)


def test_importing_the_interface_and_listing_imports_no_framework() -> None:
    code = (
        "import sys; from farandole.adapters import Progress, detect_launch, strategy_rows; strategy_rows();"
        "print(*sorted({'torch', 'numpy', 'horovod', 'tensorflow', 'keras', 'lightning'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr
