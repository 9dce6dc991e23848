"""What Lightning does not document, and a version may lack: it is missed when the plugin is imported."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

from farandole.adapters import EngineUnavailableError
from farandole.plugins.lightning import compat

KNOWN = r"not documented\. Known to work: Lightning 2\.5\.0, 2\.6\.6\. Install it: pip install lightning==2\.6\.6"


def look_again() -> None:
    assert compat.__spec__ is not None and compat.__spec__.loader is not None
    compat.__spec__.loader.exec_module(importlib.util.module_from_spec(compat.__spec__))


@pytest.mark.parametrize(
    ("module", "owner", "name"),
    [
        ("lightning.pytorch.utilities.data", "", "_reinstantiate_wrapped_cls"),
        ("lightning.pytorch.loops.fit_loop", "_FitLoop", "_load_combined_loader_states"),
        ("lightning.pytorch.trainer.trainer", "Trainer", "_results"),
        ("lightning.pytorch.plugins", "Precision", "_after_closure"),
        ("lightning.fabric.strategies", "Strategy", "_configure_launcher"),
    ],
)
def test_a_name_that_is_gone(module: str, owner: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    look_again()
    of = importlib.import_module(module)
    monkeypatch.delattr(getattr(of, owner) if owner else of, name)
    with pytest.raises(EngineUnavailableError, match=rf"has no .*{name}, which is needed here and {KNOWN}"):
        look_again()


def test_what_is_said_when_the_plugin_is_imported() -> None:
    lines = [
        "import lightning.fabric.utilities.data as data",
        "del data._auto_add_worker_init_fn",
        "import farandole.plugins.lightning",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "has no lightning.fabric.utilities.data._auto_add_worker_init_fn" in done.stderr.splitlines()[-1]
